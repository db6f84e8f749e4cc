"""Decides whether a worker process hangs, and whether one that died is started again and when. Pure.

A worker that hangs is told by work that does not move while there is some, never by a long queue or a slow answer. The
shell looks at regular times and tells what it saw; it owns clock, process and random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.errors import ConfigError
from penstock.policy.retry import Backoff

LOOKS = 10
"""How often a worker is looked at in the time after which it counts as hung. Looks are counted and not seconds: a
machine that was suspended, or an event loop that was held up, finds many seconds gone and nothing of its worker's yet.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was seen of one worker's work.

    Attributes:
        progress: a number that changes with each step that the worker makes.
        still: looks in a row at which it had work and had not moved.
    """

    progress: int = -1
    still: int = 0

    def look(self, *, progress: int, has_work: bool) -> Watch:
        """Return the watch after another look."""
        if not has_work or progress != self.progress:
            return replace(self, progress=progress, still=0)
        return replace(self, still=self.still + 1)

    @property
    def is_hung(self) -> bool:
        """Say whether the worker has stood still for so long that it is to be killed."""
        return self.still >= LOOKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """Counts a worker's failures in a row and says what comes after one.

    Attributes:
        limit: restarts in a row; after one more failure the worker is tried now and then only.
        steady_s: a worker that answered for so long was well, and its failure is the first one again.
        backoff: how long to wait before a restart.
        slow_s: longest wait before one beyond the limit; 0 for none, so that the worker stays down.
        failures: in a row, so far.
    """

    limit: int
    steady_s: float
    backoff: Backoff
    slow_s: float = 0.0
    failures: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0 or self.steady_s < 0 or self.slow_s < 0:
            raise ConfigError(
                f"limit ({self.limit}), steady_s ({self.steady_s}) and slow_s ({self.slow_s}) must not be negative"
            )

    def after_failure(self, *, was_ready_s: float, stood_still_s: float = 0.0) -> Restarts:
        """Return the count after a worker failed.

        Args:
            was_ready_s: from its first token to the end; 0 where it made none.
            stood_still_s: for how long of that it hung, which is no sign of health: one that hangs again as soon as
                it is asked would be started without end.
        """
        well_s = was_ready_s - stood_still_s
        is_first = well_s > 0 and well_s >= self.steady_s
        return replace(self, failures=1 if is_first else self.failures + 1)

    @property
    def is_slow(self) -> bool:
        """Say whether it failed so often that it is tried now and then only: what kept it down may have passed."""
        return self.failures > self.limit

    @property
    def is_over(self) -> bool:
        """Say whether it failed too often to be started again at all."""
        return self.is_slow and not self.slow_s

    def delay_s(self, random: float) -> float:
        """Return how long to wait before the restart that comes next; ``random`` is uniform in [0, 1)."""
        if self.is_slow:
            return self.slow_s * (1 + random) / 2
        return self.backoff.delay_s(max(self.failures - 1, 0), random)
