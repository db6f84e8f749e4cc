"""Dates for decisions about how long ago something was: they go on with time that passes, whoever sets the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class SteadyClock:
    """Gives the date at which the process began plus the time that has passed since.

    A clock that is set, by hand or by a time service that finds itself ten years off, moves dates of this clock
    nowhere: no device falls silent, and no wave is over, for that. The next process begins with the clock of its time.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        passed: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            wall: asked once, now.
            passed: a clock that nobody sets, in seconds.
        """
        self._passed, self._began_at, self._began = passed, passed(), wall()

    def __call__(self) -> datetime:
        return self._began + timedelta(seconds=self._passed() - self._began_at)
