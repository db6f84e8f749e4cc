"""A histogram as plain numbers, a tenth of a microsecond each; ``/metrics`` modules turn it into text when scraped.

The client library's own histogram takes a lock each time, which a server of this size would pay for several times a
request. Single-threaded: all calls come from the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for durations, of requests and of what they are made of."""


class Histogram:
    """Counts by upper bound.

    Attributes:
        bounds: upper bounds, inclusive, ascending.
        counts: one for each bound and one for what is above all of them; not cumulative.
        total: the sum of what was observed.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """List (upper bound, values at or below it), as Prometheus wants it; the last bound is ``+Inf``."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))
