"""The words of batching: a chunk that is queued, the limits of a queue, and the order of priorities.

A chunk is one request's rows; it is never split. Which chunks run together, which are too late and when to look again
is ``penstock.policy.batch_line``'s decision. Does not decide admission: ``max_queue_rows`` is here so that one value
describes a queue, its owner enforces it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from penstock.errors import ConfigError

DEFAULT_LEVEL = 2
"""The level of priority 0, one step below an explicit 1: the order is 1, then 0 and 2 alike, then 3, 4, ..."""

LOWEST_LEVEL = 100
"""Larger priorities count as this one, so that the bound on overtaking is finite for everybody."""


@dataclass(slots=True, kw_only=True, eq=False)  # not frozen: made for each request, and freezing costs a microsecond
class Queued:
    """One chunk in the queue.

    Attributes:
        rows: at least 1.
        arrived_at: when it came, in seconds on the caller's clock.
        deadline: when its answer is of no use any more, on the same clock; None for never.
        priority: as in the Open Inference Protocol's extensions: 1 highest, larger lower, 0 the default.
        shape_key: only chunks with equal keys are merged (input names, datatypes and shapes without the batch).
        tenant: between tenants, shares decide before priorities do.
        lane: where it waits; None while it does not. Its line's own, as is ``number``, which grows with each arrival.
    """

    rows: int
    arrived_at: float
    deadline: float | None = None
    priority: int = 0
    shape_key: Hashable = None
    tenant: str = ""
    lane: Any = None
    number: int = 0


@dataclass(slots=True)
class Room:
    """How many rows wait, and how many may: of one queue, or of several that share it.

    Attributes:
        name: the setting that bounds it, for whoever is refused.
    """

    max_rows: int
    name: str = "max_queue_rows"
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Limits of one queue.

    Attributes:
        max_rows: rows of one batch; a larger chunk goes alone.
        max_delay_s: how long an idle device waits for a fuller batch; 0 dispatches at once.
        max_queue_rows: rows that may wait; enforced by the queue's owner.
        ageing_s: seconds of waiting that are worth one level of priority. A chunk of level L is overtaken only by
            chunks of a higher level that arrive within (L - 1) * ageing_s after it, so nothing starves.
    """

    max_rows: int
    max_delay_s: float = 0.0
    max_queue_rows: int = 1024
    ageing_s: float = 1.0

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_queue_rows < 1:
            raise ConfigError(
                f"max_rows ({self.max_rows}) and max_queue_rows ({self.max_queue_rows}) must be at least 1"
            )
        if not (self.max_delay_s >= 0 and self.ageing_s >= 0):
            raise ConfigError(f"max_delay_s ({self.max_delay_s}) and ageing_s ({self.ageing_s}) must not be negative")


def level_of(priority: int) -> int:
    """Return the level of a priority, 1 first."""
    return DEFAULT_LEVEL if priority == 0 else min(priority, LOWEST_LEVEL)
