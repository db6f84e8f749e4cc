"""How texts are answered where something is promised of the answers, and when two of them are the same. Pure.

The compiler counts harm by it, and an agent decides and compares by it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import msgspec

Normalisation = Literal["whitespace", "words"]
"""When two texts count as the same answer."""


class AnswerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a language model's answers were made when its promise was: greedily, and with these limits; or as the
    likeliest of some options.

    Attributes:
        max_new_tokens: of an answer.
        stop: an answer ended before the first of these strings.
        normalisation: when two answers counted as the same.
        choices: the options of every answer; empty where each request brings its own. Left out for answers that are
            free text, and by releases that knew no others.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    normalisation: Normalisation = "whitespace"
    choices: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_choice(self) -> bool:
        """Say whether answers are options, scored as a whole."""
        return self.choices is not msgspec.UNSET

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options of every answer; none where each request brings its own, or answers are free text."""
        return () if self.choices is msgspec.UNSET else self.choices


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
