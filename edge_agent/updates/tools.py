"""Holds what the tasks of all models of a device share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from edge_agent.serving.hosting import Hosting
from edge_agent.settings import UpdateSettings
from edge_agent.updates.fetch import Fetcher
from edge_agent.updates.store import Store
from penstock.errors import Internal
from penstock.wire.outcomes import OutcomeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Holds what the tasks of all models share.

    Attributes:
        boot_id: of the machine; another one at the next start says that the machine was started again.
        one_load: held while a model is loaded and proves itself: one at a time, so that a death names its model.
        now: the event loop's clock.
        random: uniform in [0, 1).
        counted: returns the rows of (model, artifact digest) that were counted before a restart.
        changed: called after every change that the fleet service should hear of.
    """

    store: Store
    fetcher: Fetcher
    hosting: Hosting
    settings: UpdateSettings
    boot_id: str
    now: Callable[[], float]
    random: Callable[[], float]
    counted: Callable[[str, str], Awaitable[OutcomeCounts]]
    changed: Callable[[], None]
    one_load: asyncio.Lock = field(default_factory=asyncio.Lock)


def as_internal(error: BaseException) -> Internal:
    """Make an error of ours from one that nobody foresaw."""
    return Internal(f"{type(error).__name__}: {error}")
