"""Say what each token stands for in bytes, read from the decoder in a tokenizer.json.

``tokenizers`` decodes whole lists of ids. Here its decoders are taken apart into what each token adds, so that text can
be streamed. Known: byte-level BPE, SentencePiece with and without byte tokens, WordPiece, and no decoder at all. Others
are refused: their text depends on tokens to come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from penstock.errors import ArtifactError

Step = Callable[[str, bool], str]
"""Changes one token's text; the second argument says whether it is the first of the whole text."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip  # what WordPiece's ``cleanup`` replaces, in the library's order


def _byte_level_alphabet() -> dict[str, int]:
    """Return the character that stands for each byte in byte-level BPE (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


ALPHABET = _byte_level_alphabet()
"""The byte that each character of a byte-level token stands for."""


class Pieces:
    """What every token of one tokenizer adds to a text; made when it is asked for the first time, and kept.

    Attributes:
        special: ids of tokens that are no text.
        stripped: a character, and how many of it are left out at the beginning of a whole text.
    """

    def __init__(self, reader: _Reader, name_of: Callable[[int], str | None], special: frozenset[int]) -> None:
        self._reader = reader
        self._name_of = name_of
        self._later: dict[int, bytes] = {}
        self.special = special
        self.stripped = reader.stripped

    def has_text(self, token: int) -> bool:
        """Say whether a token takes part in the text: it is in the vocabulary, and not special."""
        return token not in self.special and self._name_of(token) is not None

    def text_bytes(self, token: int, *, first: bool) -> bytes:
        """Return what a token adds to a text: nothing where it is special, or not in the vocabulary.

        Args:
            first: no token before it added anything; some tokenizers write a first word without its space.
        """
        if first:
            return self._made(token, first=True)
        found = self._later.get(token)
        if found is None:
            found = self._later[token] = self._made(token, first=False)
        return found

    def bytes_of(self, token: int) -> bytes:
        """Return what a token stands for anywhere but at the beginning; a special one's own name."""
        if token in self.special:
            return (self._name_of(token) or "").encode()
        return self.text_bytes(token, first=False)

    def beginning_with(self, texts: tuple[bytes, ...], vocabulary: int) -> Iterator[int]:
        """Yield the tokens below ``vocabulary`` whose text begins with one of these; keeps none of the texts made."""
        return (token for token in range(vocabulary) if self._made(token, first=False).startswith(texts))

    def _made(self, token: int, *, first: bool) -> bytes:
        if token in self.special:
            return b""
        name = self._name_of(token)
        return b"" if name is None else self._reader.read(name, first=first)


class _Reader:
    """The steps of one decoder: texts are changed one after another, and become bytes at the end."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.byte_level = False
        self.byte_tokens = False
        self.fused = False
        self.stripped = ("", 0)

    def read(self, name: str, *, first: bool) -> bytes:
        if self.byte_level:
            known = [ALPHABET.get(character) for character in name]
            # an added token with a character that stands for no byte is written as it is
            return bytes(byte for byte in known if byte is not None) if None not in known else name.encode()
        text = name
        for step in self.steps:
            text = step(text, first)
        if self.byte_tokens and (found := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(found[1], 16)])
        return text.encode()

    def add(self, decoder: Mapping[str, Any]) -> None:
        """Take one decoder of the file.

        Raises:
            ArtifactError: one that cannot be taken apart.
        """
        kind = decoder.get("type")
        if self.byte_level or (self.fused and kind not in ("Strip", "Fuse")):
            raise _refused(f"{kind} after others")
        match kind:
            case "Sequence":
                for part in decoder.get("decoders") or []:
                    self.add(part)
            case "ByteLevel" if not (self.steps or self.byte_tokens):
                self.byte_level = True
            case "ByteFallback":
                self.byte_tokens = True
            case "Fuse":
                self.fused = True
            case "Replace" if isinstance(decoder["pattern"].get("String"), str) and not self.byte_tokens:
                self.steps.append(_replaced(decoder["pattern"]["String"], decoder["content"]))
            case "Strip" if self.fused and not decoder["stop"] and not self.stripped[1]:
                self.stripped = (decoder["content"], decoder["start"])
            case "Metaspace" if not self.byte_tokens:
                self.steps.append(_metaspace(decoder))
            case "WordPiece" if not self.byte_tokens:
                self.steps.append(_word_piece(decoder["prefix"], cleans=decoder["cleanup"]))
            case _:
                raise _refused(str(kind))


def read_pieces(document: Mapping[str, Any], name_of: Callable[[int], str | None], vocabulary: int) -> Pieces:
    """Read the decoder of a tokenizer.json.

    Args:
        name_of: a token's own name by its id.
        vocabulary: ids are below it.

    Raises:
        ArtifactError: a decoder that is not known here, or that is malformed.
    """
    reader = _Reader()
    try:
        if (decoder := document.get("decoder")) is None:
            reader.steps.append(lambda text, first: text if first else f" {text}")
        else:
            reader.add(decoder)
        added = document.get("added_tokens") or []
        special = frozenset(token["id"] for token in added if token["special"] and token["id"] < vocabulary)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"tokenizer.json has a malformed decoder or added token: {error!r}") from error
    return Pieces(reader, name_of, special)


def _refused(what: str) -> ArtifactError:
    return ArtifactError(
        f"tokenizer.json has the decoder {what}, whose text cannot be streamed token by token; ByteLevel, Metaspace, "
        "WordPiece, and Replace with ByteFallback, Fuse and Strip at the beginning can"
    )


def _replaced(old: str, new: str) -> Step:
    return lambda text, _first: text.replace(old, new)


def _metaspace(decoder: Mapping[str, Any]) -> Step:
    mark, prepends = decoder["replacement"], decoder.get("prepend_scheme", "always") != "never"
    return lambda text, first: text.replace(mark, "" if first and prepends else " ")


def _word_piece(prefix: str, *, cleans: bool) -> Step:
    def step(text: str, first: bool) -> str:
        if not first:
            text = text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"
        for old, new in _CLEANED if cleans else ():
            text = text.replace(old, new)
        return text

    return step
