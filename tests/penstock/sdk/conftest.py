from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.penstock.sdk.server import Backend, Servers, running, running_in_thread

SCHEMES = ("grpc", "http", "unix")


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with running(Backend()) as started:
        yield started


@pytest.fixture(scope="module")
def _threaded() -> Iterator[Servers]:
    with running_in_thread(Backend()) as started:
        yield started


@pytest.fixture
def threaded(_threaded: Servers) -> Servers:
    """Servers in another thread, with a clean record."""
    _threaded.backend.__dict__.update(Backend().__dict__)
    return _threaded


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def target(threaded: Servers, scheme: str) -> str:
    return threaded.target(scheme)
