"""Options of an answer: as the texts that a request names, and as the tokens that an engine scores.

An option is a whole answer as it is written: its tokens have to stand for exactly its text where it follows a prompt.
What ends it is any of the model's own ends, and any token whose text begins with a string at which answers stop. How
likely options are is ``penstock.runtime.generation.option_scores``; how sure that makes an answer, ``penstock.policy``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from penstock.errors import InvalidInput
from penstock.generation.values import Grammar, Options

if TYPE_CHECKING:
    from penstock.generation.tokenizer import Tokenizer

MAX_OPTIONS = 256
"""Of one request: each costs a run of the model over its own tokens."""

_FIELD = "choices"
_BEFORE = ("", "\n", ":", "a")
"""Texts that an option is tokenized behind, until its tokens are its text: some tokenizers put a space before a first
word, which none of these has."""


def texts_of(grammar: Grammar) -> tuple[str, ...]:
    """Return the options of a grammar of kind ``choice``.

    Raises:
        InvalidInput: no JSON list of texts, none in it, or an empty one.
    """
    try:
        texts = msgspec.json.decode(grammar.text, type=list[str])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidInput(f"grammar: choices are a JSON list of texts: {error}", field="grammar") from error
    if not texts or not all(texts):
        raise InvalidInput("grammar: choices are a JSON list of texts, of which none is empty", field="grammar")
    return tuple(texts)


def grammar_of(texts: Sequence[str]) -> Grammar:
    """Return the grammar that allows one of these texts."""
    return Grammar(kind="choice", text=msgspec.json.encode(list(texts)).decode())


def options_of(
    texts: Sequence[str], tokenizer: Tokenizer, *, stop: Sequence[str] = (), end_ids: Collection[int]
) -> Options:
    """Return the tokens of each option, and those that end one.

    Args:
        stop: strings at which answers stop.
        end_ids: with which the model ends an answer.

    Raises:
        InvalidInput: too many, two that are the same, one that holds a string at which answers stop, or that no tokens
            stand for; or nothing ends an answer.
    """
    if len(texts) > MAX_OPTIONS:
        raise InvalidInput(f"choices: {len(texts)} options; at most {MAX_OPTIONS} are scored", field=_FIELD)
    for text in texts:
        if stopped := [one for one in stop if one in text]:
            raise InvalidInput(
                f"choices: {text[:60]!r} holds {stopped[0][:60]!r}, at which answers stop; leave one out", field=_FIELD
            )
    ids = tuple(_ids(text, tokenizer) for text in texts)
    if len(set(ids)) < len(ids):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise InvalidInput(f"choices: {twice[:60]!r} is there twice; leave one out", field=_FIELD)
    ends = frozenset(end_ids) | tokenizer.beginning_with(stop)
    if not ends:
        raise InvalidInput(
            "choices: the model has no token that ends an answer; name a string at which answers stop", field=_FIELD
        )
    return Options(ids=ids, end_ids=tuple(sorted(ends)))


def _ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens of an option behind a prompt."""
    wanted = text.encode()
    for before in _BEFORE:
        first = tokenizer.encode(before, add_special_tokens=False) if before else []
        ids = tokenizer.encode(before + text, add_special_tokens=False)
        rest = tuple(ids[len(first) :])
        stands_for = b"".join(tokenizer.pieces.text_bytes(token, first=False) for token in rest)
        if rest and ids[: len(first)] == first and stands_for == wanted:
            return rest
    raise InvalidInput(f"choices: no tokens of this model stand for {text[:60]!r} behind a prompt", field=_FIELD)
