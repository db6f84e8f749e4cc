"""The port for files of rows; which module reads and writes which file is said in ``penstock.batch.files``.

A file is read in chunks of equal size, so that a run that begins again finds the same chunks, and none is in memory
as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from penstock.wire.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of a table that follow each other.

    Attributes:
        start: the row with which it begins, counted from 0.
        columns: [N, ...] each, by name.
    """

    start: int
    rows: int
    columns: Mapping[str, Array]


class Source(Protocol):
    """A file that is read.

    Attributes:
        names: of its columns.
        rows: how many it has.
        is_text: cells are text, also where they mean numbers.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def rows(self) -> int: ...
    @property
    def is_text(self) -> bool: ...

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Read it from its beginning, ``size`` rows at a time; the last chunk may have fewer.

        Raises:
            InvalidInput: it is damaged.
        """
        ...


Kind = Literal["scalar", "list", "text", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the file that is written.

    Attributes:
        datatype: of its numbers, as the inference protocol names it; "" for text and for what was kept.
        kind: one number or text in a cell, a list of them, text, or whatever was read.
    """

    name: str
    datatype: str = ""
    kind: Kind = "scalar"


class Sink(Protocol):
    """A file that is written; a context, which completes it."""

    def __enter__(self) -> Sink: ...
    def __exit__(self, *error: object) -> None: ...

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows: for each column its values, None for a missing one."""
        ...
