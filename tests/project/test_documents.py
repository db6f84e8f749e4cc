"""What the pages say is there: links and their anchors, commands, modules, tests, and the numbered invariants."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from penstock.cli.default_group import DefaultGroup
from penstock.cli.main import command as umbrella

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
INVARIANTS = 15

_FENCED = re.compile(r"^```.*?^```[ ]*$", re.M | re.S)
_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]*)\)")
_SHELL = re.compile(r"^```(?:bash|sh|console|text)?\n(.*?)^```[ ]*$", re.M | re.S)


def _pages() -> list[Path]:
    """Markdown that is in the repository or about to be."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


PAGES = _pages()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def _anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+)$", _FENCED.sub("", _text(page)), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page that lead to no file or folder of the repository, or to no heading."""
    for link in _LINK.findall(_FENCED.sub("", _text(page))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            yield f"{link}: no such file"
        elif anchor and anchor not in _anchors(target):
            yield f"{link}: no such heading"


@each_page
def test_links_and_anchors_resolve(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# `[fleet.gate]` and *more*\n\n# Twice\n\n# Twice\n", encoding="utf-8")
    page.write_text(
        "# Here\n[a](other.md#fleetgate-and-more) [b](#here) [c](other.md#twice-1)\n"
        "[d](other.md#no) [e](none.md) [f](#no)\n"
        "```\n[g](none.md)\n```\n",
        encoding="utf-8",
    )
    assert [link.partition(":")[0] for link in broken_links(page)] == ["other.md#no", "none.md", "#no"]


def wrong_words(line: str) -> str:
    """What a shown command has that ``penstock`` does not: the first unknown command or flag; "" if nothing."""
    found: click.Command = umbrella
    for word in re.split(r"\s#\s|[|;&]", line.removeprefix("penstock"))[0].split():
        if word.startswith("--"):
            if word.partition("=")[0] not in _flags(found):
                return word
        elif isinstance(found, click.Group) and re.fullmatch(r"[a-z]+", word):
            inner = found.get_command(click.Context(found), word)
            if inner is None and not isinstance(found, DefaultGroup):
                return word
            found = inner or found
    return ""


def _flags(command: click.Command) -> set[str]:
    """Flags of a command; of a group with a default command, the default's."""
    default = command.default_command if isinstance(command, DefaultGroup) else None
    options = [*command.params, *(default.params if default else ())]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)} | {"--help"}


@each_page
def test_commands_and_flags_exist(page: Path) -> None:
    shown = "\n".join([*re.findall(r"`([^`\n]+)`", _text(page)), *_SHELL.findall(_text(page))]).replace("\\\n", " ")
    used = re.findall(r"^(?:\$ )?(penstock [^\n]*)", shown, re.M)
    assert [f"{line}: {word}" for line in used if (word := wrong_words(line))] == []


def test_a_command_or_flag_that_does_not_exist_is_found() -> None:
    assert wrong_words("penstock fleet status --watch  # --no such flag, in a comment") == ""
    assert wrong_words("penstock fleet explode") == "explode"
    assert wrong_words("penstock certificate verify") == "certificate"
    assert wrong_words("penstock fleet status --wach") == "--wach"
    assert wrong_words("penstock certify build/x --data d.npz && penstock --no") == ""


@each_page
def test_modules_exist(page: Path) -> None:
    named = set(
        re.findall(r"`((?:penstock|compiler|edge_agent|cloud_core)(?:\.[a-z_]\w*)+)(?:\.[A-Z]\w*)?`", _text(page))
    )
    assert sorted(name for name in named if not _is_there(name)) == []


def _is_there(name: str) -> bool:
    """Is this a module, or something that a module defines at its top?"""
    parts = name.split(".")
    path = ROOT.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    spec = importlib.util.find_spec(".".join(parts[:-1])) if _is_there_module(parts[:-1]) else None
    if spec is None or spec.origin is None:
        return False
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return any(parts[-1] == getattr(node, "name", "") for node in tree.body)


def _is_there_module(parts: list[str]) -> bool:
    return ROOT.joinpath(*parts).with_suffix(".py").is_file()


@each_page
def test_paths_exist(page: Path) -> None:
    rooms = "penstock|compiler|edge_agent|cloud_core|tests|hw_tests|scripts|docs|benchmarks|examples|proto"
    named = re.findall(rf"`((?:{rooms})/[\w./-]*)(?:::(\w+))?`", _text(page))
    missing = [path for path, test in named if not (ROOT / path).exists()]
    missing += [
        f"{path}::{test}" for path, test in named if test and f"def {test}(" not in _text(ROOT / path.rstrip("/"))
    ]
    assert missing == []


def test_invariants_are_numbered_and_tested() -> None:
    """Each is one paragraph, ``**Invariant N: ...**``, with the tests that hold it, or the words that nothing does."""
    paragraphs = _text(ARCHITECTURE).split("\n\n")
    found = {int(match[1]): text for text in paragraphs if (match := re.match(r"\*\*Invariant (\d+): [^*]+\*\*", text))}
    assert list(found) == list(range(1, INVARIANTS + 1))
    untested = [number for number, text in found.items() if not re.search(r"`tests/[\w/]+\.py::test_\w+`", text)]
    assert untested == [number for number, text in found.items() if "*Not held yet:*" in text]


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    led = {(index.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(_text(index))}
    decisions = index.parent / "adr"
    pages = {page for page in PAGES if page.is_relative_to(index.parent) and page.parent != decisions}
    assert pages - led == {index}
    assert decisions in led


def test_decisions_have_numbers_of_their_own() -> None:
    decisions = sorted(path for path in (ROOT / "docs" / "adr").glob("*.md"))
    numbers = [path.name[:4] for path in decisions]
    assert numbers == sorted(set(numbers))
    assert [path.name for path in decisions if not _text(path).startswith(f"# {path.name[:4]}. ")] == []
