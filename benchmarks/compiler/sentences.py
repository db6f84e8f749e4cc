"""Real English sentences with real labels: the first sentence of docstrings of Python's standard library.

The label of a sentence is the part of the library that it describes. Files are read and never imported.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TOPICS = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "tkinter", "unittest", "urllib", "xml")
"""Packages with enough to say, and no two about the same thing."""

_MIN_WORDS, _MAX_CHARS = 4, 400


def sentences() -> list[tuple[str, int]]:
    """Return (sentence, index into ``TOPICS``), each sentence once, in the order of packages, files and lines."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, int] = {}
    for topic, name in enumerate(TOPICS):
        for path in sorted((library / name).rglob("*.py")):
            if not {"test", "tests", "idle_test"} & set(path.parts):
                for text in _docstrings(path):
                    sentence = first_sentence(text)
                    if len(sentence.split()) >= _MIN_WORDS:
                        found.setdefault(sentence, topic)
    return list(found.items())


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop of the first paragraph."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return (sentence + stop.strip())[:_MAX_CHARS]


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
