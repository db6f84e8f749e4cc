"""How long a run of a model takes, by the amount of work in it, as it was seen; and so where the next one may run.

Work is the number of elements of a run's inputs. One number for a model would not do: with free dimensions it is
measured at 1 when it is loaded, and gets a text of 6,000 tokens later. Pure: the caller has the clock.
"""

from __future__ import annotations

import math
from enum import Enum, auto

IMMEDIATE_BELOW_S = 15e-6
"""What a turn through queue, planner and wake-ups costs a request. A batch cannot save more than it costs here."""

PREEMPTED_S = 0.05
"""A process on a busy machine loses the CPU for some milliseconds now and then. A run longer than this was long."""

_FORGIVEN = 0.25  # of an estimate that was too high, with each run that was quicker

_SIZES = 64


class Place(Enum):
    """Where a run may happen."""

    AT_ONCE = auto()  # on the event loop, and cheaper than a queue: it never waits for company
    ON_LOOP = auto()  # on the event loop, together with what came in the same turn
    ELSEWHERE = auto()  # in a thread, a process or another machine: it would hold the event loop up


class RunTimes:
    """What runs were seen to take. Works of the same power of two share an estimate.

    An estimate rises at once to a run that took long, and falls by a part with each shorter one: an event loop that was
    held up is not held up again by the next run of that size. A run that took a few milliseconds more than the one
    before is believed when the next one takes as long: it may have been the machine and not the model.
    """

    __slots__ = ("_last_s", "_seen_s")

    def __init__(self) -> None:
        self._seen_s = [0.0] * _SIZES
        self._last_s = [math.inf] * _SIZES

    def __repr__(self) -> str:
        seen = [f"{2**size >> 1}+: {took_s * 1e6:.0f} us" for size, took_s in enumerate(self._seen_s) if took_s]
        return f"RunTimes({', '.join(seen)})"

    def observe(self, work: int, took_s: float) -> None:
        """Learn from a run."""
        size = min(work.bit_length(), _SIZES - 1)
        seen_s, last_s = self._seen_s[size], self._last_s[size]
        self._last_s[size] = took_s
        if took_s < PREEMPTED_S:
            took_s = min(took_s, last_s)
        self._seen_s[size] = took_s if took_s >= seen_s else seen_s + _FORGIVEN * (took_s - seen_s)

    def expected_s(self, work: int) -> float:
        """Expect this many seconds for a run; infinity before anything was seen.

        Work of a size that was not seen takes as long as the next smaller one for each element (never less: what is
        fixed is counted again with every doubling), and no longer than the next larger one.
        """
        size = min(work.bit_length(), _SIZES - 1)
        seen_s = self._seen_s[size]
        return seen_s or self._between(size)

    def place(self, work: int, *, on_loop_below_s: float) -> Place:
        """Decide where a run goes, where less than ``on_loop_below_s`` may be spent on the event loop."""
        expected_s = self.expected_s(work)
        if expected_s >= on_loop_below_s:
            return Place.ELSEWHERE
        return Place.AT_ONCE if expected_s < IMMEDIATE_BELOW_S else Place.ON_LOOP

    def _between(self, size: int) -> float:
        smaller = next((other for other in range(size - 1, -1, -1) if self._seen_s[other]), None)
        larger_s = next((took_s for took_s in self._seen_s[size + 1 :] if took_s), float("inf"))
        if smaller is None:
            return larger_s
        return min(larger_s, self._seen_s[smaller] * 2.0 ** (size - smaller))
