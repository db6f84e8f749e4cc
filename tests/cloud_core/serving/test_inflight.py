"""No shared fate: what one model or tenant has in flight leaves room for others, and refusals say when to return."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_core.registry.registry import Registry
from cloud_core.settings import ServingSettings
from cloud_core.tenants.settings import TenantSettings
from penstock.errors import DeadlineExceeded, MemoryFull, QueueFull
from penstock.hosting.replica import EngineReplica
from penstock.policy.service_time import ServiceTime
from tests.cloud_core.rig import Rig, onnx_layout, rig_of
from tests.penstock.hosting.rig import outcome, rows, until

MakeRig = Callable[..., Any]
TENANTS = tuple(TenantSettings(name=name, token=f"{name}-secret") for name in ("noisy", "small"))
MIB = 1024 * 1024


@pytest.fixture
async def make_rig(registry: Registry, put: Any, tmp_path: Path) -> AsyncIterator[MakeRig]:
    made: list[Rig] = []
    gates: list[threading.Event] = []

    async def make(*, models: tuple[str, ...], tenants: tuple[TenantSettings, ...] = (), **settings: Any) -> Rig:
        """The first model's only replica hangs until the test is over."""
        for seed, model in enumerate(models):
            await put(registry, onnx_layout(tmp_path, "v1", model=model, seed=seed))
        known = {"inline_below_s": 0.0, "placement": "inline", "replicas": 1, "default_timeout_s": 600.0, **settings}
        rig = rig_of(registry, ServingSettings(**known), tenants)
        made.append(rig)
        await rig.settle()
        (queue,) = next(one for one in rig.plane.served() if one.variant.spec.model == models[0]).queues
        assert isinstance(queue.replica, EngineReplica)
        gates.append(threading.Event())
        queue.replica.thread.submit(gates[-1].wait)
        queue.service = ServiceTime(fixed_s=0.5)  # what the slow model takes, as far as anybody knows
        return rig

    yield make
    for gate in gates:
        gate.set()
    for rig in made:
        await rig.controller.close(5.0)


async def _callers(rig: Rig, n: int, **ask: Any) -> list[asyncio.Task[Any]]:
    """Ask so often at the same time, and let those who find no room learn it."""
    callers = [asyncio.create_task(outcome(rig.infer(rows(1), **ask))) for _ in range(n)]
    for _ in range(5):
        await asyncio.sleep(0)
    return callers


@contextlib.asynccontextmanager
async def _gone(callers: list[asyncio.Task[Any]]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


async def test_4300_callers_of_a_slow_model_leave_a_fast_one_untouched(make_rig: MakeRig) -> None:
    rig = await make_rig(models=("slow", "fast"))
    callers = await _callers(rig, 4300, model="slow")
    async with _gone(callers):
        refused = [caller.result() for caller in callers if caller.done()]
        assert 4300 - len(refused) == 4096 // 2
        assert all(isinstance(error, QueueFull) for error in refused)
        assert "requests of this model are in flight, as many as others leave free of 4096" in refused[0].message
        fast = await asyncio.gather(*(rig.infer(rows(1), model="fast") for _ in range(64)))
        assert {answer.version for answer in fast} == {"v1"}


async def test_a_model_that_is_alone_may_have_every_place(make_rig: MakeRig) -> None:
    rig = await make_rig(models=("slow",), max_inflight_requests=10)
    callers = await _callers(rig, 11, model="slow")
    async with _gone(callers):
        (refused,) = [caller.result() for caller in callers if caller.done()]
        assert "10 requests are in flight, the limit (serving.max_inflight_requests)" in refused.message


async def test_a_noisy_tenant_leaves_places_bytes_and_room_in_the_queue_for_a_small_one(make_rig: MakeRig) -> None:
    rig = await make_rig(models=("slow",), tenants=TENANTS, max_inflight_requests=100, max_queue_rows=40)
    noisy = await _callers(rig, 200, model="slow", token="noisy-secret")
    async with _gone(noisy):
        assert sum(not caller.done() for caller in noisy) == 20  # half of the queue
        small = await _callers(rig, 5, model="slow", token="small-secret")
        async with _gone(small):
            assert not any(caller.done() for caller in small)
    with contextlib.ExitStack() as bodies:  # none of which has been read
        for _ in range(50):
            bodies.enter_context(rig.plane.admit(rig.context(token="noisy-secret"), "slow", "", 10))
        with pytest.raises(QueueFull, match="50 requests of this tenant"):
            rig.plane.admit(rig.context(token="noisy-secret"), "slow", "", 10)
        bodies.enter_context(rig.plane.admit(rig.context(token="small-secret"), "slow", "", 10))
    assert rig.measures.inflight == rig.measures.inflight_bytes == 0


async def test_a_lone_tenant_may_have_everything(make_rig: MakeRig) -> None:
    rig = await make_rig(models=("slow",), tenants=TENANTS[:1], max_queue_rows=40)
    callers = await _callers(rig, 200, model="slow", token="noisy-secret")
    async with _gone(callers):
        assert sum(not caller.done() for caller in callers) == 40


async def test_15_unfinished_bodies_of_60_mib_cost_what_admission_allows(make_rig: MakeRig) -> None:
    rig = await make_rig(models=("slow", "fast"), max_inflight_bytes=512 * MIB)
    refused = 0
    with contextlib.ExitStack() as bodies:
        for _ in range(15):
            try:
                bodies.enter_context(rig.plane.admit(rig.context(), "slow", "", 60 * MIB))
            except MemoryFull:
                refused += 1
        assert rig.measures.inflight_bytes == 4 * 60 * MIB <= 512 * MIB // 2
        assert refused == 11
        assert (await rig.infer(rows(1), model="fast")).version == "v1"
        bodies.enter_context(rig.plane.admit(rig.context(), "fast", "", 60 * MIB))


async def test_refusals_say_when_what_waits_should_be_done(make_rig: MakeRig) -> None:
    rig = await make_rig(models=("slow", "fast"), max_inflight_requests=100, max_inflight_bytes=10_000)
    slow = next(one for one in rig.plane.served() if one.variant.spec.model == "slow")
    callers = await _callers(rig, 48, model="slow")  # of 16 rows a batch: one runs, two wait
    async with _gone(callers):
        await until(lambda: slow.queues[0].running_rows)
        with contextlib.ExitStack() as more:
            for _ in range(2):
                more.enter_context(rig.plane.admit(rig.context(), "slow", "", 10))
            refused = await outcome(rig.infer(rows(1), model="slow"))
            assert isinstance(refused, QueueFull)
            assert refused.retry_after_s == pytest.approx(slow.drained_after_s(), abs=0.4)
            assert 1.0 <= refused.retry_after_s <= 1.5
        big = await outcome(rig.infer(np.zeros((300, 4), np.float32), model="slow"))
        assert isinstance(big, MemoryFull)
        assert 1.0 <= (big.retry_after_s or 0.0) <= 1.5
        late = await outcome(rig.infer(rows(1), model="slow", timeout_s=1.0))
        assert isinstance(late, DeadlineExceeded)
        assert 0.1 <= (late.retry_after_s or 0.0) <= 1.5  # by then there would be time for it
        never = await outcome(rig.infer(rows(1), model="slow", timeout_s=0.25))
        assert isinstance(never, DeadlineExceeded)
        assert never.retry_after_s is None  # it would not be in time if it were alone
