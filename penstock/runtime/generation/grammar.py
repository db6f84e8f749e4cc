"""Which tokens a grammar allows next, by llguidance. The only module that imports it; without it there are no grammars.

Owns one answer's place in its grammar. Draws nothing: who does, leaves out what is not allowed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.generation.values import Grammar
from penstock.runtime.generation.guidance import guidance

try:
    import llguidance
except ImportError:  # behind the extra generate
    llguidance = None

TOKENIZER_FILE = "tokenizer.json"

# everybody else's tokens wait while a grammar is read: a regex of a hundred letters, such as (a{1000}){1000}, takes
# seconds with llguidance's own limit of 1,000,000, and a list of 5,000 words fits into this one
_LEXER_FUEL = 100_000
_MAX_KEPT = 16  # of grammars that were read: a request for several answers asks for the same one again and again


class Grammars:
    """What reads grammars for one model's tokens; the tokenizer is read when the first grammar comes."""

    def __init__(self, directory: Path, vocabulary: int, end_ids: Collection[int]) -> None:
        self._file, self._vocabulary, self._end_ids = directory / TOKENIZER_FILE, vocabulary, sorted(end_ids)
        self._tokenizer: Any = None
        self._read: OrderedDict[Grammar, Any] = OrderedDict()
        self.are_known = llguidance is not None and self._file.is_file()

    def begin(self, grammar: Grammar) -> Matcher:
        """Return the place before the first token of an answer.

        Raises:
            InvalidInput: a grammar that is none.
        """
        matcher = self._read.get(grammar)
        if matcher is None:
            matcher = self._read[grammar] = self._matcher(grammar)
            if len(self._read) > _MAX_KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(grammar)
        return Matcher(matcher.deep_copy(), self._vocabulary)

    def _matcher(self, grammar: Grammar) -> Any:
        kind, text = guidance(grammar)
        if self._tokenizer is None:
            self._tokenizer = llguidance.LLTokenizer(str(self._file), self._vocabulary, self._end_ids)
        limits = llguidance.LLParserLimits(initial_lexer_fuel=_LEXER_FUEL)
        matcher = llguidance.LLMatcher(self._tokenizer, _READ[kind](text), log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidInput(f"grammar: {matcher.get_error()[:500]}", field="grammar")
        return matcher


class Matcher:
    """The place of one answer in its grammar.

    Attributes:
        has_given_up: the grammar became too large for llguidance's limits; nothing is held to it any more.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self.has_given_up = False

    def masked(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return logits with minus infinity for every token that may not come next. After the whole of a grammar only
        the model's end may.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.has_given_up = self._matcher.is_error()
        if self.has_given_up:
            return logits
        allowed = np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)
        self.has_given_up = self._matcher.is_error()


def _json_schema(text: str) -> Any:
    return llguidance.LLMatcher.grammar_from_json_schema(text)


def _regex(text: str) -> Any:
    return llguidance.LLMatcher.grammar_from_regex(text)


def _lark(text: str) -> Any:
    return llguidance.LLMatcher.grammar_from_lark(text)


_READ = {"json_schema": _json_schema, "regex": _regex, "lark_grammar": _lark}
