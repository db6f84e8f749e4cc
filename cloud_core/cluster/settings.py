"""Settings of a core whose state is in PostgreSQL."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long PostgreSQL is waited for. Nothing of it concerns SQLite.

    Attributes:
        connect_s: how long a connection may take to be made; at least 2.
        statement_s: how long one statement may take.
        standby: where another core has the database, wait until it is gone and take its place; without it, a start
            fails then.
        standby_s: how often a core that waits looks, and one that serves whether it still has the database.
    """

    connect_s: Annotated[float, msgspec.Meta(ge=2.0, le=300.0)] = 5.0
    statement_s: Annotated[float, msgspec.Meta(ge=1.0, le=3600.0)] = 30.0
    standby: bool = False
    standby_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600.0)] = 1.0
