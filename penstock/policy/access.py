"""What callers may want to do, in the words that tables of routes and tenants' roles share. Decides nothing."""

from __future__ import annotations

from enum import Enum, auto


class Action(Enum):
    """What a caller wants to do."""

    INFER = auto()  # ask models, and ask about them
    PULL = auto()  # read artifacts
    REPORT = auto()  # heartbeats and outcomes of a device
    PUSH = auto()  # change artifacts
    SCRAPE = auto()  # read metrics, which name all models and tenants
    OPERATE = auto()  # see the fleet, and change what it runs
