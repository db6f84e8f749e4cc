"""A path to the core that goes silent without a reset, and a cloud that says it is ready and answers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.settings import EscalationSettings, LinkSettings
from penstock.errors import DeadlineExceeded
from penstock.rpc.pb import fleet_pb2
from tests.edge_agent.cloud import FakeFleet
from tests.edge_agent.datapath import UNSURE, DataPath, data_path, rows, running_cloud
from tests.waiting import until


class Proxy:
    """A TCP proxy that can stop forwarding on the connections it has, while their sockets stay open."""

    def __init__(self, target: str) -> None:
        self.target = ""
        self.accepted = 0
        self.given_up = 0  # connections that the client ended
        self._host, port = target.removeprefix("grpc://").rsplit(":", 1)
        self._port = int(port)
        self._silent_up_to = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []

    def silence(self) -> None:
        """Swallow from now on what comes over the connections that are open."""
        self._silent_up_to = self.accepted

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.target = f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            for writer in self._writers:
                writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, far_writer]
        self._pumps.append(asyncio.create_task(self._upward(number, reader, far_writer)))
        self._pumps.append(asyncio.create_task(self._pump(number, far_reader, writer)))

    async def _upward(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        await self._pump(number, source, sink)
        self.given_up += 1

    async def _pump(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if number > self._silent_up_to:
                    sink.write(data)
                    await sink.drain()
        sink.close()


async def served_by(path: DataPath) -> object:
    answer = await path.infer(rows(UNSURE), timeout_s=5.0)
    return answer.parameters["served_by"]


async def test_rows_go_up_again_over_a_new_connection_after_the_old_one_went_silent(tmp_path: Path) -> None:
    escalation = EscalationSettings(timeout_s=0.3, breaker_failures=3, breaker_open_s=0.02)
    async with (
        running_cloud() as cloud,
        Proxy(cloud.target).serve() as proxy,
        data_path(tmp_path, proxy.target, escalation=escalation) as path,
    ):
        assert await served_by(path) == "cloud"
        proxy.silence()
        for _ in range(3):
            assert await served_by(path) == "edge"
        await until("a new connection", lambda: proxy.accepted == 2)
        await until("the way up is open again", lambda: path.escalator.is_reachable)
        assert await served_by(path) == "cloud"
        assert proxy.accepted == 2


async def test_reports_arrive_again_over_a_new_connection_after_the_old_one_went_silent() -> None:
    async with FakeFleet().serve() as fleet, Proxy(fleet.target).serve() as proxy:
        link = FleetLink(proxy.target, timeout_s=0.3, link=LinkSettings(renew_after=2))
        try:
            request = fleet_pb2.HeartbeatRequest(device_id="d")
            await link.heartbeat(request)
            proxy.silence()
            for _ in range(2):
                with pytest.raises(DeadlineExceeded):
                    await link.heartbeat(request)
            await link.heartbeat(request)
            assert proxy.accepted == 2
        finally:
            await link.close()


async def test_a_silent_connection_is_found_by_its_keepalive_while_nobody_calls() -> None:
    async with FakeFleet().serve() as fleet, Proxy(fleet.target).serve() as proxy:
        link = FleetLink(proxy.target, timeout_s=5.0, link=LinkSettings(keepalive_s=0.2, renew_after=10**6))
        try:
            request = fleet_pb2.HeartbeatRequest(device_id="d")
            await link.heartbeat(request)
            proxy.silence()
            await until("the connection is given up", lambda: proxy.given_up == 1)
            await link.heartbeat(request)
            assert proxy.accepted == 2
        finally:
            await link.close()


async def test_a_cloud_that_is_ready_and_hangs_stays_shut_and_is_asked_more_and_more_seldom(tmp_path: Path) -> None:
    escalation = EscalationSettings(timeout_s=0.1, breaker_open_s=0.01, breaker_max_open_s=0.1)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, escalation=escalation) as path:
        cloud.gate.clear()
        for _ in range(3):
            assert await served_by(path) == "edge"
        await until("it is tried with inferences", lambda: len(cloud.calls) >= 6)
        assert not path.escalator.is_reachable
        cloud.gate.set()
        await until("it is found back", lambda: path.escalator.is_reachable)
        assert await served_by(path) == "cloud"
