"""A fleet service over real gRPC, and a link to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from edge_agent.reporting.fleet_link import FleetLink
from tests.edge_agent.cloud import FakeFleet


@pytest.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    async with FakeFleet().serve() as found:
        yield found


@pytest.fixture
async def link(fleet: FakeFleet) -> AsyncIterator[FleetLink]:
    found = FleetLink(fleet.target, timeout_s=2.0)
    yield found
    await found.close()
