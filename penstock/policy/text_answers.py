"""When two texts are the same answer. Pure; the compiler counts harm by it, and an agent's audit compares by it."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Normalisation = Literal["whitespace", "words"]
"""When two texts count as the same answer."""

_NOT_WORDS = re.compile(r"[^\w\s]|_")
_ARTICLES = frozenset({"a", "an", "the"})


def normalised(text: str, how: Normalisation) -> str:
    """Return a form of an answer that is equal for answers that mean the same.

    ``whitespace``: Unicode NFC, without outer whitespace, each inner run of it as one space; suits code. ``words``:
    NFKC, lower case, no punctuation, no English articles; suits short answers to questions (as SQuAD scores them).
    """
    if how == "whitespace":
        return " ".join(unicodedata.normalize("NFC", text).split())
    words = _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()
    return " ".join(word for word in words if word not in _ARTICLES)
