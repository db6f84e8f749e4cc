"""Holds what the tasks of all models of a device share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
        now: the event loop's clock.
        random: uniform in [0, 1).
        counted: returns the rows of (model, artifact digest) that were counted before a restart.
        changed: called after every change that the fleet service should hear of.
    """

    store: Store
    fetcher: Fetcher
    hosting: Hosting
    settings: UpdateSettings
    now: Callable[[], float]
    random: Callable[[], float]
    counted: Callable[[str, str], Awaitable[OutcomeCounts]]
    changed: Callable[[], None]


def as_internal(error: BaseException) -> Internal:
    """Make an error of ours from one that nobody foresaw."""
    return Internal(f"{type(error).__name__}: {error}")
