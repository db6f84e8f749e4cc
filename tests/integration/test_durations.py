"""Durations under uvloop, whose own clock moves in milliseconds: what takes 0.2 ms is measured as such."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from edge_agent.policy.admission import Limits
from edge_agent.serving.inflight import InFlight
from penstock.hosting.replica import Chunk
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.hosting.rows import Tensors
from tests.edge_agent.datapath import SURE, data_path, rows
from tests.penstock.hosting.rig import FakeEngine, replica_of

TOOK_S = 0.0002
TIMES = 10


def work() -> None:
    until = time.perf_counter() + TOOK_S
    while time.perf_counter() < until:
        pass


class Slow(FakeEngine):
    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        work()
        return dict(super().run(inputs, outputs))


class Seen:
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.runs: list[float] = []

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def ran(self, rows: int, seconds: float, requests: int) -> None:
        self.runs.append(seconds)


def test_the_clock_of_uvloop_moves_in_whole_milliseconds() -> None:
    """The trap itself: were it gone, the tests below could not fail."""

    async def test() -> list[float]:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        passed = []
        for _ in range(TIMES):
            work()
            passed.append(loop.time() - began_at)
        return passed

    milliseconds = [1000 * seconds for seconds in uvloop.run(test())]
    assert milliseconds == pytest.approx([round(passed) for passed in milliseconds], abs=1e-4)


def test_runs_and_waits_of_a_queue_are_measured_below_a_millisecond() -> None:
    seen = Seen()

    async def test() -> None:
        queue: ReplicaQueue[Tensors] = ReplicaQueue(
            replica_of(Slow(), is_short=True, max_batch=1), max_queue_rows=100, measures=seen
        )
        for _ in range(TIMES):
            chunks = [Chunk(inputs={"x": np.ones((1, 4), np.float32)}, rows=1) for _ in range(2)]
            await asyncio.gather(*(asyncio.ensure_future(queue.infer(chunk)) for chunk in chunks))

    uvloop.run(test())
    assert min(seen.runs) >= TOOK_S
    assert len(set(seen.runs)) > 1  # not in steps
    assert len(set(seen.waits)) > 1


def test_a_request_of_an_agent_is_measured_below_a_millisecond(tmp_path: Path) -> None:
    async def test() -> InFlight:
        async with data_path(tmp_path) as path:
            for _ in range(TIMES):
                await path.infer(rows(SURE))
            in_flight = InFlight(
                Limits(max_body_bytes=100, max_queue_rows=100, max_rows_per_request=100, max_inflight_bytes=100)
            )
            for _ in range(TIMES):
                with in_flight.admit(0):
                    work()
            assert path.dataplane.in_flight.duration_s.total > 0
            return in_flight

    assert uvloop.run(test()).duration_s.total >= TIMES * TOOK_S
