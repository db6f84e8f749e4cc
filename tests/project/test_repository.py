"""Rules about the files themselves: size of modules and functions, no machine's own paths."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60

# every exception says why the longer form reads better
LONGER_MODULES: Mapping[str, str] = {
    "edge_agent/updates/model_updater.py": "one task and the state that nothing else writes; a method for each action",
    "penstock/hosting/queue.py": "one state and its callbacks; either half would need the other's fields",
}
LONGER_FUNCTIONS: Mapping[str, str] = {}


def _tracked() -> list[Path]:
    """Files that are in the repository or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def _code() -> list[Path]:
    """Python of the packages and programs; tests and generated code have other sizes."""
    return [
        path
        for path in _tracked()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests" and "_pb2" not in path.name
    ]


FILES = _tracked()
CODE = _code()


@cache
def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""  # a picture or a golden file


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path))


def _long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            name = f"{path.relative_to(ROOT)}:{node.name}"
            if lines > MAX_FUNCTION_LINES and name not in LONGER_FUNCTIONS:
                yield f"{name} has {lines} lines"


def test_there_is_code_to_check() -> None:
    assert len(CODE) > 40


def test_modules_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(_text(path).splitlines()) for path in CODE}
    assert {name: n for name, n in lines.items() if n > MAX_MODULE_LINES and name not in LONGER_MODULES} == {}


def test_functions_are_short() -> None:
    assert [found for path in CODE for found in _long_functions(path)] == []


def test_exceptions_are_still_needed() -> None:
    for name in LONGER_MODULES:
        assert len(_text(ROOT / name).splitlines()) > MAX_MODULE_LINES, name
    for name in LONGER_FUNCTIONS:
        path, _, function = name.partition(":")
        assert f"def {function}(" in _text(ROOT / path), name


def test_modules_say_what_they_own() -> None:
    undocumented = [
        str(path.relative_to(ROOT)) for path in CODE if _text(path).strip() and ast.get_docstring(_tree(path)) is None
    ]
    assert undocumented == []


def test_no_file_names_one_machines_paths() -> None:
    pattern = re.compile(r"(?<![\w.~}])/(?:root|Users|wor[k]|workspace)/\w")
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
        for path in FILES
        for line in _text(path).splitlines()
        if pattern.search(line)
    ]
    assert named == []


def test_nothing_is_left_to_do() -> None:
    pattern = re.compile(r"\b(?:TO[D]O|FIXM[E]|XX[X])\b")
    found = [str(path.relative_to(ROOT)) for path in FILES if pattern.search(_text(path))]
    assert found == []
