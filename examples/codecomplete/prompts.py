"""What is asked: the next name in a line of Python, after a dot or a parenthesis; from files no model was trained on.

Rows for ``data.source`` of ``recipe.toml``, and held-out ones for the demonstration. Both are places drawn at random
from the held-out files of this interpreter's standard library, so the promise is about such places. The models are tiny
and know few names; what is promised of them is how far the device may differ from the cloud, not that either is right.

Whole next lines are too much for them. Of 500, cut after 24 tokens, the two completed 8% alike and the larger one 3%
right: at most a tenth would stay on the device, and "rarely harmful" would be true of nonsense.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from examples.tiny_llama import data

COMPILED, ASKED = 1200, 120
"""Prompts of the recipe, and of the demonstration, which are others."""

_NAME = re.compile(r"[A-Za-z_)\]][.(]([A-Za-z_]\w{1,15})")
_CONTEXT_CHARS, _LEAST_CHARS = 240, 60
_SEED = 0


def rows() -> Iterator[dict[str, str]]:
    """Return the prompts that the pair is certified on, each with the name that stands there."""
    yield from _drawn()[:COMPILED]


def held_out() -> list[dict[str, str]]:
    """Return prompts that the compilation has not seen."""
    seen = {row["prompt"] for row in rows()}
    return [row for row in _drawn()[COMPILED:] if row["prompt"] not in seen][:ASKED]


def _drawn() -> list[dict[str, str]]:
    """Draw places, the same ones each time, without equal prompts."""
    texts = data.texts(held_out=True)
    places = [(number, found) for number, text in enumerate(texts) for found in _NAME.finditer(text)]
    drawn: dict[str, dict[str, str]] = {}
    for number, found in random.Random(_SEED).sample(places, len(places)):
        at, text = found.start(1), texts[number]
        begin = text.find("\n", max(0, at - _CONTEXT_CHARS)) + 1
        if at - begin >= _LEAST_CHARS:
            drawn.setdefault(text[begin:at], {"prompt": text[begin:at], "answer": found[1]})
        if len(drawn) >= COMPILED + 2 * ASKED:
            break
    return list(drawn.values())
