"""Make text of an answer's tokens as they come: each character as soon as it is whole, and nothing decoded twice.

Joined, the texts are what the tokenizer makes of all ids at once without special tokens. One thing differs, on purpose:
where bytes are no UTF-8, each wrong place becomes one U+FFFD as Unicode recommends, while ``tokenizers`` turns a whole
run of SentencePiece's byte tokens into U+FFFD, characters that were whole included; nobody could stream that.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from penstock.generation.token_pieces import Pieces

_DECODER = codecs.getincrementaldecoder("utf-8")
_LOOK_BACK_BYTES = 8  # longer than any beginning of a character


class Detokenizer:
    """The text of one answer in the making. Holds back at most the three bytes of a character that is not whole.

    Args:
        after: ids of the prompt. The answer goes on where it ends: a word keeps its space, and half a character at
            its end is completed by the answer and belongs to it.
    """

    def __init__(self, pieces: Pieces, *, after: Sequence[int] = ()) -> None:
        self._pieces = pieces
        self._utf8 = _DECODER("replace")
        self._first = True
        self._mark, self._to_strip = pieces.stripped
        self._said = False
        self._resume(after)

    def _resume(self, prompt: Sequence[int]) -> None:
        """Take over the end of the prompt; what is before its last bytes changes nothing any more."""
        start, size = len(prompt), 0
        while start and size < _LOOK_BACK_BYTES:
            start -= 1
            size += len(self._pieces.text_bytes(prompt[start], first=False))
        if start:
            self._first, self._to_strip = False, 0
        for token in prompt[start:]:
            self.add(token)
        self._said = False

    def add(self, token: int) -> str:
        """Return the text that may be shown because of one more token."""
        if not self._pieces.has_text(token):
            return ""
        piece = self._pieces.text_bytes(token, first=self._first)
        self._first = False
        self._said = self._said or bool(piece)
        return self._without_mark(self._utf8.decode(piece))

    def end(self) -> str:
        """Return what is left: U+FFFD for a character that the answer began and did not end."""
        rest = self._without_mark(self._utf8.decode(b"", final=True))
        return rest if self._said else ""

    def _without_mark(self, text: str) -> str:
        while self._to_strip and text:
            if not text.startswith(self._mark):
                self._to_strip = 0
                break
            text = text.removeprefix(self._mark)
            self._to_strip -= 1
        return text


def decode(pieces: Pieces, ids: Iterable[int]) -> str:
    """Return the text of all ids at once, as a stream of them would give it."""
    stream = Detokenizer(pieces)
    texts = [stream.add(token) for token in ids]
    return "".join(texts) + stream.end()
