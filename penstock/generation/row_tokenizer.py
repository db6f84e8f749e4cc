"""Texts to tokens with their types, for models that take rows of tokens and give vectors.

Beside ``penstock.generation.tokenizer``, which reads what a token is in bytes: that is a language model's need, and
many encoders have tokenizers that cannot say it. Pads and cuts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import InvalidInput
from penstock.generation.tokenizer import library_of

MAX_CHARACTERS_PER_TOKEN = 64
"""A text with more characters for each token that there is room for is refused before it is tokenized, which would take
long. Words have five; what has more is white space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """The tokens of one text.

    Attributes:
        ids: with those that the tokenizer adds.
        types: one for each; which text of a pair it is of, in models that take pairs.
    """

    ids: Sequence[int]
    types: Sequence[int]


class RowTokenizer:
    """A loaded tokenizer. Several threads may use it at the same time.

    Attributes:
        vocabulary: ids are below it.
    """

    def __init__(self, content: bytes, *, name: str, max_tokens: int) -> None:
        """Load a ``tokenizer.json``.

        Args:
            name: of the file, for messages.
            max_tokens: most tokens of a text.

        Raises:
            ArtifactError: it is none. MissingExtra: the library is not installed.
        """
        self._library: Any = library_of(content, name=name)
        self._max_tokens = max_tokens
        self.vocabulary = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    def of_text(self, text: str, *, field: str) -> TokenRow:
        """Tokenize a text.

        Raises:
            InvalidInput: it has more tokens than there is room for; ``field`` is where it stands.
        """
        most = self._max_tokens * MAX_CHARACTERS_PER_TOKEN
        if len(text) > most:
            raise InvalidInput(
                f"{field}: {len(text)} characters, and the model takes {self._max_tokens} tokens, which is at most "
                f"{most} characters; send the text in parts",
                field=field,
            )
        encoding = self._library.encode(text)
        self._check(len(encoding.ids), field)
        return TokenRow(ids=encoding.ids, types=encoding.type_ids)

    def of_ids(self, ids: Sequence[int], *, field: str) -> TokenRow:
        """Take tokens as they are; none is added.

        Raises:
            InvalidInput: one is not in the vocabulary, or there are too many.
        """
        self._check(len(ids), field)
        strange = next((one for one in ids if not 0 <= one < self.vocabulary), None)
        if strange is not None:
            raise InvalidInput(
                f"{field}: token id {strange} is not in the vocabulary, which has 0 to {self.vocabulary - 1}",
                field=field,
            )
        return TokenRow(ids=ids, types=[0] * len(ids))

    def _check(self, tokens: int, field: str) -> None:
        if tokens > self._max_tokens:
            raise InvalidInput(
                f"{field}: {tokens} tokens, and the model takes at most {self._max_tokens}; send the text in parts",
                field=field,
            )
