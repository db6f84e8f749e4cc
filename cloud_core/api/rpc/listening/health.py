"""``grpc.health.v1``: what each service's state is, asked once (Check) or followed (Watch).

Not the library's servicer: of two clients that watch one service, its second hears nothing more once the first has
left. A watcher that reads slowly misses states between, and hears the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse
NAME = "grpc.health.v1.Health"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """The states of a fixed set of services; all NOT_SERVING at first. Must be made in a running event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        self._states = dict.fromkeys(services, _Status.NOT_SERVING)
        self._changed = asyncio.Event()

    def set(self, is_serving: bool) -> None:
        """Set the state of every service."""
        self._states = dict.fromkeys(self._states, _Status.SERVING if is_serving else _Status.NOT_SERVING)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # the .proto's name
        state = self._states.get(request.service)
        if state is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Status(status=state)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        told = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, _Status.SERVICE_UNKNOWN)
            if state != told:
                yield _Status(status=state)
                told = state
            await changed.wait()
