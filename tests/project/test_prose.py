"""Docstrings say what happens, in plain words, and in a form that tools read."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("penstock", "compiler", "edge_agent", "cloud_core")
PROGRAMS = ("benchmarks", "examples", "scripts", "hw_tests", "tests", "docs")

# in brackets, so that this file does not hold them
_OLD_WORDS = re.compile(r"\b(?:ane[w]|afres[h]|who[m]|for eve[r]|nobody ma[y])\b", re.IGNORECASE)
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): ")
_NO_VERB = {
    "The", "A", "An", "What", "Whether", "How", "Where", "Who", "One", "All", "As", "In", "Of", "For", "Every", "Each",
    "Why", "When", "Which", "At", "Likewise", "Our", "No", "Nothing", "None", "Everything", "Whatever", "It", "This",
    "That", "By", "With", "Nobody", "Two", "True", "False",
}  # fmt: skip

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _files(*trees: str, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for tree in trees for path in (ROOT / tree).rglob("*") if path.suffix in suffixes)
    return sorted(path for path in found if "_pb2" not in path.name)


MODULES = _files(*PACKAGES, suffixes=(".py",))
TEXTS = [*_files(*PACKAGES, *PROGRAMS, suffixes=(".py", ".md")), *sorted(ROOT.glob("*.md"))]


@cache
def _documented(source: str) -> list[tuple[Documented, str]]:
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, Documented))
    return [(node, text) for node in nodes if (text := ast.get_docstring(node))]


def old_words(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if _OLD_WORDS.search(line):
            yield f"{number}: {line.strip()[:100]}"


def shared_lines(source: str) -> Iterator[str]:
    """Lines of Args and Attributes that describe more than one name."""
    for node, text in _documented(source):
        names = _names(node)
        section = ""
        for line in text.splitlines():
            if found := _SECTION.fullmatch(line):
                section = found[1]
            elif section in ("Args", "Attributes"):
                entry = _ENTRY.match(line)
                later = re.findall(r"[.;] (?:``)?(\w+)(?:``)?: ", line)
                if (entry and "," in entry[1]) or names & set(later):
                    yield f"{node.lineno} {node.name}: {line.strip()}"


def _names(node: Documented) -> set[str]:
    """Names that a docstring may describe: fields of a class, arguments of a function."""
    if isinstance(node, ast.ClassDef):
        fields = {ast.unparse(child.target) for child in node.body if isinstance(child, ast.AnnAssign)}
        return fields | {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
    return {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def without_verb(source: str) -> Iterator[str]:
    """Docstrings of functions that begin with anything but a verb."""
    for node, text in _documented(source):
        is_entries_only = bool(_SECTION.match(text))
        if isinstance(node, ast.ClassDef) or node.name == "__init__" or is_entries_only:
            continue
        first = re.split(r"\W", text, maxsplit=1)[0]
        if first in _NO_VERB or not first[:1].isupper():
            yield f"{node.lineno} {node.name}: {text.splitlines()[0]}"


def _found(rule: Callable[[str], Iterator[str]], paths: Iterable[Path]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}" for path in paths for line in rule(path.read_text(encoding="utf-8"))]


def test_words_are_plain() -> None:
    assert _found(old_words, TEXTS) == []


def test_an_entry_has_a_line_of_its_own() -> None:
    assert _found(shared_lines, MODULES) == []


def test_the_docstring_of_a_function_starts_with_a_verb() -> None:
    assert _found(without_verb, MODULES) == []


BAD = '''
class Place:
    """Somewhere.

    Attributes:
        host, port: where.
        name: of it. ``size``: how large.
    """

    host: str
    size: int

    def where(self, name: str) -> str:
        """The place.

        Args:
            name: of it; name: again.
        """
'''


def test_each_rule_can_fail() -> None:
    assert len(list(old_words(f"fetched ane{'w'}\nfine\n"))) == 1
    assert len(list(shared_lines(BAD))) == 3
    assert len(list(without_verb(BAD))) == 1


def test_values_of_an_entry_are_no_entries() -> None:
    good = '''
def f(verdict: str) -> None:
    """Do it.

    Args:
        verdict: ``works``; ``broken``: it does not work; absent: it is not here.
    """
'''
    assert list(shared_lines(good)) == list(without_verb(good)) == []
