"""Channels of a graph that stand or fall together, as labels: what :mod:`compiler.graph.channel_flow` finds.

Every output channel of a convolution or matrix has a label; labels that were joined have one root. Decides nothing
about which channels to take out, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a constant: the channels along it, and what the constant's node does with them.

    Attributes:
        role: ``makes`` where the node gives these channels, ``reads`` where it sums over them, ``follows`` where it has
            one value a channel, ``counts`` for an element of a reshape's target that is their number.
    """

    constant: str
    axis: int
    labels: Labels
    role: str
    node: str


@dataclass(slots=True, kw_only=True)
class Channels:
    """What was found. Labels are compared by :meth:`roots`; ``frozen`` maps a root to the reason why it stays."""

    axes: list[Axis] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    depthwise: dict[str, str] = field(default_factory=dict)
    """Nodes whose ``group`` is the number of channels, with the constant that has them."""
    _parents: list[int] = field(default_factory=list)

    def new(self, count: int) -> Labels:
        """Make labels that nothing has yet."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def roots(self, labels: Labels) -> Labels:
        """Return one label for all that belong together."""
        return np.array([self._root(int(label)) for label in labels], np.int64)

    def join(self, left: Labels, right: Labels) -> None:
        """Say that channels stand or fall together, pairwise."""
        for one, other in zip(self.roots(left), self.roots(right), strict=True):
            first, second = self._root(int(one)), self._root(int(other))
            if first == second:
                continue
            low, high = min(first, second), max(first, second)
            self._parents[high] = low
            reason = self.frozen.pop(high, None)
            if reason is not None:
                self.frozen.setdefault(low, reason)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Say that channels stay."""
        for root in set(self.roots(labels).tolist()):
            self.frozen.setdefault(root, reason)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label
