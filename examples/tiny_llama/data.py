"""The text of Python's own standard library: for training, for perplexity, and as prompts with their right answers.

Every interpreter brings it, so the example needs no download. Files are divided by name: a model is
never examined on what it has seen. Figures differ a little between Python versions, whose libraries differ.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = 0.15
"""Share of the files that no model is trained on."""

_MIN_CONTEXT_CHARS, _MAX_CONTEXT_CHARS = 60, 240
_ANSWER_CHARS = (3, 24)


def texts(*, held_out: bool) -> list[str]:
    """Return the files of one side, sorted by name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.glob("*.py")) if _is_held_out(path.name) is held_out]
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


def write_training(path: Path, max_chars: int) -> Path:
    """Write a .jsonl file of texts to train on, at most ``max_chars`` of them."""
    left, lines = max_chars, []
    for text in texts(held_out=False):
        if left <= 0:
            break
        lines.append(json.dumps(text[:left]))
        left -= len(text)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def examination(max_chars: int) -> tuple[str, ...]:
    """Return held-out texts for perplexity, the head of each file."""
    each = texts(held_out=True)
    return tuple(text[: max_chars // len(each)] for text in each if text.strip())


def completions(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Return prompts that stop before a word of a held-out line, each with the rest of that line as its answer."""
    source = random.Random(seed)
    held = texts(held_out=True)
    places = [(number, at) for number, text in enumerate(held) for at in _places(text)]
    for number, at in source.sample(places, min(count, len(places))):
        text = held[number]
        begin = text.find("\n", max(0, at - _MAX_CONTEXT_CHARS)) + 1
        yield {"prompt": text[begin:at], "answer": text[at : text.index("\n", at)].strip()}


def _places(text: str) -> Iterator[int]:
    """Return where a short rest of a line begins with a space and a word, after enough context."""
    shortest, longest = _ANSWER_CHARS
    end = text.find("\n")
    while end >= 0:
        line_begin = text.rfind("\n", 0, end) + 1
        at = text.find(" ", max(line_begin, end - longest), end - shortest)
        is_inside = at > 0 and text[line_begin:at].strip() != "" and at - _MAX_CONTEXT_CHARS > 0
        context = text.find("\n", max(0, at - _MAX_CONTEXT_CHARS)) + 1
        if is_inside and at - context >= _MIN_CONTEXT_CHARS:
            yield at
        end = text.find("\n", end + 1)


def _is_held_out(name: str) -> bool:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT
