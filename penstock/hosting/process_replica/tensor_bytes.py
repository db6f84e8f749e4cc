"""Tensors as bytes in a row: where each one lies, written once and read without a copy.

The rows of several requests are joined while they are written, so that a batch is copied once on its way to another
process. Raw little-endian bytes, as everywhere on the wire (``penstock.wire.tensors``). Values and buffers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from penstock.hosting.rows import Tensors
from penstock.wire import tensors
from penstock.wire.tensors import Array

_ALIGNED = 64  # a cache line, and what vector instructions like

Buffer = bytearray | memoryview


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies.

    Attributes:
        at: its first byte.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    at: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Tensors and where they will lie.

    Attributes:
        pieces: what is written at which byte: an array, or bytes of strings.
        size_bytes: up to the end of the last one.
    """

    parts: tuple[Part, ...]
    pieces: Sequence[tuple[int, Array | bytes]]
    size_bytes: int

    def write(self, buffer: Buffer) -> None:
        """Write the tensors."""
        for at, piece in self.pieces:
            if isinstance(piece, bytes):
                buffer[at : at + len(piece)] = piece
            else:
                place: Array = np.frombuffer(buffer, piece.dtype.newbyteorder("<"), piece.size, at)
                place.reshape(piece.shape)[...] = piece


def lay_out(chunks: Sequence[Tensors], *, begin_at: int = 0) -> Layout:
    """Say where tensors go, those of one name one after the other along dimension 0.

    Raises:
        InvalidInput: an element of a BYTES tensor is neither text nor bytes.
    """
    parts: list[Part] = []
    pieces: list[tuple[int, Array | bytes]] = []
    at = begin_at
    for name, first in chunks[0].items():
        at = begin = -(-at // _ALIGNED) * _ALIGNED
        datatype = tensors.datatype_of(first)
        rows = 0
        for chunk in chunks:
            array = chunk[name]
            piece = tensors.to_bytes(array, field=name) if datatype == "BYTES" else array
            pieces.append((at, piece))
            at += len(piece) if isinstance(piece, bytes) else piece.nbytes
            rows += array.shape[0] if array.shape else 0
        shape = (rows, *first.shape[1:]) if len(chunks) > 1 else first.shape
        parts.append(Part(name, datatype, shape, begin, at - begin))
    return Layout(parts=tuple(parts), pieces=pieces, size_bytes=at)


def read(parts: Sequence[Part], buffer: bytes | memoryview) -> dict[str, Array]:
    """Return the tensors, numbers as views of the buffer.

    Raises:
        InvalidInput: the bytes are not those of such tensors.
    """
    view = memoryview(buffer)
    return {
        part.name: tensors.from_bytes(view[part.at : part.at + part.size_bytes], part.datatype, part.shape,
                                      field=part.name)
        for part in parts
    }  # fmt: skip
