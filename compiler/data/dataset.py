"""Examples divided by use, as the compiler works with them: names, arrays and digests, no files.

Owns what each use may see. ``ranges`` gives integer ranges; ``tune`` fits the temperature and every choice (score,
candidate, gate); ``certify`` is looked at once; ``test`` gives figures that decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """

    name: str
    inputs: Mapping[str, Array]
    labels: NDArray[Any] | None
    groups: NDArray[np.str_] | None = None

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def digest(self) -> str:
        """Return the digest of inputs, labels and groups; their order counts."""
        named = dict(self.inputs)
        if self.labels is not None:
            named["<labels>"] = self.labels
        if self.groups is not None:
            named["<groups>"] = self.groups
        return digest_of(tensors.pack(named))

    def take(self, rows: NDArray[np.intp] | slice, *, name: str) -> Split:
        """Return some of the rows, as a split of another name."""
        return Split(
            name=name,
            inputs={key: array[rows] for key, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One split a use. ``class_names`` are the source's own, in the order of the labels; () when it names none."""

    ranges: Split
    tune: Split
    certify: Split
    test: Split
    class_names: tuple[str, ...] = ()

    def by_use(self) -> dict[str, Split]:
        """Return every split under the name of its use."""
        return {"ranges": self.ranges, "tune": self.tune, "certify": self.certify, "test": self.test}

    def with_labels(self, change: Callable[[NDArray[Any] | None], NDArray[Any] | None]) -> Dataset:
        """Return the same examples with labels in another form."""
        changed = [
            replace(split, labels=change(split.labels)) for split in (self.ranges, self.tune, self.certify, self.test)
        ]
        return replace(self, ranges=changed[0], tune=changed[1], certify=changed[2], test=changed[3])

    def thinned(self, rows: int) -> Dataset:
        """Return at most ``rows`` examples of each split, evenly spaced: sources are often sorted by class."""

        def thin(split: Split) -> Split:
            if split.rows <= rows:
                return split
            return split.take(np.linspace(0, split.rows - 1, rows).astype(np.intp), name=split.name)

        thinned = [thin(split) for split in (self.ranges, self.tune, self.certify, self.test)]
        return replace(self, ranges=thinned[0], tune=thinned[1], certify=thinned[2], test=thinned[3])


def batches(split: Split, size: int) -> Iterator[dict[str, Array]]:
    """Yield all rows in order, by input name, at most ``size`` at a time; the last batch may be smaller."""
    for start in range(0, split.rows, size):
        yield {name: array[start : start + size] for name, array in split.inputs.items()}
