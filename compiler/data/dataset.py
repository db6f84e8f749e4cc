"""Examples divided by use, as the compiler works with them: names, arrays and digests, no files.

Owns what each use may see. ``ranges`` gives integer ranges; ``tune`` fits the temperature and every choice (score,
candidate, gate); ``certify`` is looked at once; ``test`` gives figures that decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.recipe.shapes_section import Dimension
from penstock.artifact.blobs import digest_of
from penstock.wire import tensors
from penstock.wire.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples of one use.

    Attributes:
        inputs: by model input name, each [N, ...].
        labels: int64 [N] for classification, float64 [N] or [N, k] for regression, numbers or words [N, ...] for other
            tasks; None when there are none.
        groups: the group of each row, str [N]; None unless ``data.group_by`` is set.
        clusters: integers [N], equal for rows that belong together, in any split; None where each is a draw by itself.
        copies: how many equal rows of the source each one stands for [N]; None where it stands for itself alone.
        dimensions: that the models are made for at several sizes (``compiler.data.buckets``).
    """

    name: str
    inputs: Mapping[str, Array]
    labels: NDArray[Any] | None
    groups: NDArray[np.str_] | None = None
    clusters: NDArray[np.int64] | None = None
    copies: NDArray[np.int64] | None = None
    dimensions: tuple[Dimension, ...] = ()

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __len__(self) -> int:
        return self.rows

    @property
    def stands_for(self) -> int:
        """Count the rows that were read, copies included."""
        return self.rows if self.copies is None else int(self.copies.sum())

    @property
    def units(self) -> int:
        """Count what is independent: clusters where rows belong together, else rows."""
        return self.rows if self.clusters is None else len(np.unique(self.clusters))

    @property
    def digest(self) -> str:
        """Return the digest of inputs, labels, groups, clusters and sizes; their order counts."""
        named = dict(self.inputs)
        if self.labels is not None:
            named["<labels>"] = self.labels
        if self.groups is not None:
            named["<groups>"] = self.groups
        if self.clusters is not None:
            named["<clusters>"] = self.clusters
        if self.dimensions:
            named["<dimensions>"] = np.frombuffer(msgspec.json.encode(self.dimensions), np.uint8)
        return digest_of(tensors.pack(named))

    def take(self, rows: NDArray[np.intp] | slice, *, name: str) -> Split:
        """Return some of the rows, as a split of another name."""
        return Split(
            name=name,
            inputs={key: array[rows] for key, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            clusters=None if self.clusters is None else self.clusters[rows],
            copies=None if self.copies is None else self.copies[rows],
            dimensions=self.dimensions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """What was found of rows that repeat or belong together, and what they are taken for.

    Attributes:
        rows: of the whole source, as far as it is read.
        distinct: with different inputs.
        most: how often the most frequent one is there.
        clusters: by ``cluster_by``; 0 without.
        cluster_by: what they belong to; "" where nothing says so.
        taken_for: "copies" where equal rows count once (or join clusters), "natural" where each is a draw.
        is_guess: whether the recipe left it open.
    """

    rows: int
    distinct: int
    most: int
    clusters: int
    cluster_by: str
    taken_for: Literal["natural", "copies"]
    is_guess: bool

    @property
    def words(self) -> str:
        """Say it in a sentence without its full stop; "" where all rows are different and nothing joins them."""
        if self.cluster_by:
            said = f"{self.rows:,} rows in {self.clusters:,} clusters by {self.cluster_by!r}, certified as wholes"
            if not self.is_guess:
                return said
            return (
                f'{said} because of the column\'s name; data.cluster_by = "{self.cluster_by}" says that it is right, '
                'data.repeats = "natural" that every row is a draw by itself'
            )
        if self.distinct == self.rows:
            return ""
        said = f"{self.rows:,} rows, {self.distinct:,} distinct (one of them {self.most:,} times)"
        if self.taken_for == "natural":
            return f"{said}, each a draw by itself"
        said = f"{said}, taken for copies: each distinct one counts once"
        return f'{said}; if they repeat by nature, set data.repeats = "natural"' if self.is_guess else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One split a use.

    Attributes:
        repeats: what was found of rows that repeat or belong together.
        class_names: the source's own, in the order of the labels; () when it names none.
    """

    ranges: Split
    tune: Split
    certify: Split
    test: Split
    repeats: Repeats
    class_names: tuple[str, ...] = ()

    def by_use(self) -> dict[str, Split]:
        """Return every split under the name of its use."""
        return {"ranges": self.ranges, "tune": self.tune, "certify": self.certify, "test": self.test}

    def with_labels(self, change: Callable[[NDArray[Any] | None], NDArray[Any] | None]) -> Dataset:
        """Return the same examples with labels in another form."""
        return self._each(lambda split: replace(split, labels=change(split.labels)))

    def with_dimensions(self, dimensions: tuple[Dimension, ...]) -> Dataset:
        """Return the same examples for models that are made for several sizes."""
        return self._each(lambda split: replace(split, dimensions=dimensions))

    def thinned(self, rows: int) -> Dataset:
        """Return at most ``rows`` examples of each split, evenly spaced: sources are often sorted by class."""

        def thin(split: Split) -> Split:
            if split.rows <= rows:
                return split
            return split.take(np.linspace(0, split.rows - 1, rows).astype(np.intp), name=split.name)

        return self._each(thin)

    def _each(self, change: Callable[[Split], Split]) -> Dataset:
        return replace(
            self,
            ranges=change(self.ranges),
            tune=change(self.tune),
            certify=change(self.certify),
            test=change(self.test),
        )


def batches(split: Split, size: int) -> Iterator[dict[str, Array]]:
    """Yield all rows in order, by input name, at most ``size`` at a time; the last batch may be smaller."""
    for start in range(0, split.rows, size):
        yield {name: array[start : start + size] for name, array in split.inputs.items()}
