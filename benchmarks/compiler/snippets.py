"""Real Python functions with real labels: which part of the standard library a function is from.

Files are read and never imported.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

PARTS = (
    "_pydecimal", "_pyio", "asyncio", "datetime", "distutils", "email", "http", "idlelib", "importlib", "inspect",
    "lib2to3", "logging", "mailbox", "multiprocessing", "tkinter", "turtle", "typing", "unittest", "urllib", "xml",
)  # fmt: skip
"""The parts with most functions; of those that a Python no longer has, there are none."""

_MIN_CHARS, _MAX_CHARS = 80, 600
_TESTS = {"test", "tests", "idle_test"}


def functions() -> list[tuple[str, int]]:
    """Return (source, index into ``PARTS``), each source once, in the order of parts, files and lines."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, int] = {}
    for part, name in enumerate(PARTS):
        single = library / f"{name}.py"
        for path in [single] if single.exists() else sorted((library / name).rglob("*.py")):
            if not _TESTS & set(path.parts):
                for text in _functions(path):
                    found.setdefault(text, part)
    return list(found.items())


def _functions(path: Path) -> Iterator[str]:
    with warnings.catch_warnings(action="ignore"):  # of escapes in old sources
        try:
            source = path.read_text()
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):  # templates and examples of bad files
            return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])[:_MAX_CHARS]
            if len(text) >= _MIN_CHARS:
                yield text
