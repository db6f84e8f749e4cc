"""Limits of a worker process's life: of its start, its restarts and its end, whatever runs in it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from penstock.policy.retry import Backoff
from penstock.policy.worker_health import Restarts

Positive = Annotated[float, Meta(gt=0, le=86_400)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class LifeSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker process from its start to its end.

    Attributes:
        start_timeout_s: longest time from the start of the process until it is ready.
        idle_ping_s: a worker that was idle for so long is asked for a sign of life; 0 never asks.
        max_restarts: in a row; after one more failure the model is down, with the reason in its health, and is tried
            now and then.
        slow_restart_s: longest wait before each of those tries; 0 for none, so that it stays down until it is loaded
            again.
        steady_s: a worker that was ready for so long was well, and its failure begins a new row.
        backoff_base_s: upper end of the wait before the first restart.
        backoff_max_s: longest wait before a restart.
        exit_s: how long a worker that is told to end may take before it is killed.
        nice: added to the process's niceness, so that it leaves the processor to what is more urgent.
    """

    start_timeout_s: Positive = 180.0
    idle_ping_s: Seconds = 60.0
    max_restarts: Annotated[int, Meta(ge=0, le=1000)] = 5
    slow_restart_s: Seconds = 300.0
    steady_s: Seconds = 60.0
    backoff_base_s: Positive = 0.5
    backoff_max_s: Positive = 30.0
    exit_s: Seconds = 5.0
    nice: Annotated[int, Meta(ge=0, le=19)] = 0

    def restarts(self) -> Restarts:
        """Begin to count restarts."""
        backoff = Backoff(base_s=self.backoff_base_s, max_s=max(self.backoff_base_s, self.backoff_max_s))
        return Restarts(limit=self.max_restarts, steady_s=self.steady_s, backoff=backoff, slow_s=self.slow_restart_s)
