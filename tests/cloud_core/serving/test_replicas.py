"""Where a core runs its models, and what a core is worth whose models' processes die."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from cloud_core.registry.registry import Registry
from cloud_core.serving.replicas import limits_of
from cloud_core.serving.router import Served
from cloud_core.settings import ServingSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import Unavailable
from penstock.hosting.process_replica.replica import ProcessReplica
from penstock.hosting.process_replica.settings import ModelSettings, ReplicaWorkerSettings
from penstock.hosting.replica import Chunk, EngineReplica
from penstock.runtime.scripted import Script
from penstock.wire.tensors import TensorSpec
from tests.cloud_core.conftest import put_layout
from tests.cloud_core.rig import Rig, onnx_layout, onnx_spec, rig_of
from tests.penstock.hosting.rig import outcome, rows
from tests.waiting import until

DIE = -1.0
IMPATIENT = ReplicaWorkerSettings(
    backoff_base_s=0.01, backoff_max_s=0.01, max_restarts=1, slow_restart_s=0.5, exit_s=0.5
)
MakeRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def make_rig(registry: Registry) -> AsyncIterator[MakeRig]:
    made: list[Rig] = []

    async def make(**settings: Any) -> Rig:
        made.append(rig_of(registry, ServingSettings(**{"worker": IMPATIENT, **settings})))
        await made[-1].settle()
        return made[-1]

    yield make
    for rig in made:
        await rig.controller.close(5.0)


async def put_doubler(registry: Registry, root: Path, tag: str = "v1", *, width: int = 4) -> Layout:
    """Push a model that doubles ``x``, and whose process dies of a row of ``DIE``."""
    weights = root / f"{tag}.json"
    weights.write_bytes(msgspec.json.encode(Script(width=width, die_on=DIE, slow_s=float(tag[1:]))))
    tensors = {name: TensorSpec(name=name, datatype="FP32", shape=(-1, width)) for name in ("x", "y")}
    spec = onnx_spec(
        "doubles", engine="scripted", inputs=(tensors["x"],), outputs=(tensors["y"],), score_output="y", max_batch=4
    )
    layout = Layout.create(root / f"doubles-{tag}")
    layout.pack([VariantDraft(spec=spec, weights=weights)], tag=tag)
    await put_layout(registry, layout)
    return layout


def served(rig: Rig, model: str) -> Served:
    (one,) = [one for one in rig.plane.served() if one.variant.spec.model == model]
    return one


def worker(rig: Rig, place: int = 0, model: str = "doubles") -> ProcessReplica:
    replica = served(rig, model).queues[place].replica
    assert isinstance(replica, ProcessReplica)
    return replica


def pid_of(replica: ProcessReplica) -> int:
    assert replica.pid is not None
    return replica.pid


async def double(rig: Rig, value: float) -> float:
    return float((await rig.infer(rows(value), model="doubles")).outputs["y"][0, 0])


async def test_tiny_models_stay_in_the_core_and_whose_time_nobody_knows_get_processes(
    make_rig: MakeRig, registry: Registry, tmp_path: Path
) -> None:
    await put_layout(registry, onnx_layout(tmp_path, "v1"))
    await put_doubler(registry, tmp_path, width=-1)
    rig = await make_rig(replicas=2)
    assert [type(queue.replica) for queue in served(rig, "mlp").queues] == [EngineReplica]
    queues = served(rig, "doubles").queues
    assert [type(queue.replica) for queue in queues] == [ProcessReplica] * 2
    assert worker(rig, 0).pid != worker(rig, 1).pid
    assert await double(rig, 3) == 6


async def test_each_model_may_be_run_in_its_own_way(make_rig: MakeRig, registry: Registry, tmp_path: Path) -> None:
    await put_layout(registry, onnx_layout(tmp_path, "v1"))
    own = ModelSettings(
        placement="process", instances=1, threads=2, max_batch_rows=5, max_queue_rows=7, providers=("cuda", "cpu")
    )
    rig = await make_rig(models={"mlp": own}, replicas=3, max_delay_s=0.25)
    (queue,) = served(rig, "mlp").queues
    replica = worker(rig, model="mlp")
    assert (replica.facts.threads, replica.max_batch) == (2, 5)
    assert (queue._queue.limits.max_queue_rows, queue._queue.limits.max_delay_s) == (7, 0.25)
    answer = await rig.infer(rows(1, 2))
    inline = await make_rig(placement="inline")
    np.testing.assert_allclose(answer.outputs["logits"], (await inline.infer(rows(1, 2))).outputs["logits"], atol=1e-5)
    refused = await make_rig(models={"mlp": ModelSettings(providers=("cuda",))})
    (state,) = refused.controller.index()
    assert state.state == "UNAVAILABLE"
    assert "CUDA" in state.reason


def test_what_a_model_does_not_say_is_as_for_all() -> None:
    settings = ServingSettings(replicas=3, threads=2, max_delay_s=0.5, models={"a": ModelSettings(max_delay_s=0.0)})
    assert limits_of(settings, "a").max_delay_s == 0.0
    assert limits_of(settings, "b").max_delay_s == 0.5
    for model in ("a", "b"):
        limits = limits_of(settings, model)
        assert (limits.instances, limits.threads, limits.placement) == (3, 2, "auto")


async def test_a_killed_process_costs_nobody_an_answer_and_the_core_stays_alive(
    make_rig: MakeRig, registry: Registry, tmp_path: Path
) -> None:
    await put_doubler(registry, tmp_path)
    rig = await make_rig(placement="process", replicas=2, worker=msgspec.structs.replace(IMPATIENT, max_restarts=9))
    for how in (signal.SIGKILL, signal.SIGSEGV):
        first = worker(rig)
        crashes = first.counts().crashes
        answers = [asyncio.create_task(double(rig, value)) for value in range(40)]
        await asyncio.sleep(0)
        os.kill(pid_of(first), how)
        assert [await answer for answer in answers] == [2.0 * value for value in range(40)]
        await until("noticed", lambda: worker(rig).counts().crashes > crashes)  # noqa: B023
        assert rig.plane.is_live
        assert await double(rig, 1) == 2, "the other one is asked"
        await until("well again", lambda: worker(rig).health().is_well)
    assert rig.measures.routes["doubles", "v1"].requests == {"ok": 82}


async def test_a_version_whose_processes_keep_dying_is_taken_out_says_why_and_comes_back(
    make_rig: MakeRig, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = await put_doubler(registry, tmp_path)
    rig = await make_rig(placement="process", replicas=1)
    weights = registry.blob_path(layout.artifact().variant("cloud").weights.digest)
    good = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(good[:-1] + b" ")
    os.kill(pid_of(worker(rig)), signal.SIGKILL)
    await until("taken out", lambda: served(rig, "doubles").problem)
    (state,) = rig.controller.index()
    assert state.state == "UNAVAILABLE"
    assert "tampered" in state.reason, "what it is loaded from is verified for each process"
    refused = await outcome(double(rig, 1))
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_s is not None
    assert rig.measures.refused == {"unavailable": 1}, "before the payload is looked at"
    assert rig.plane.is_live
    assert rig.plane.is_ready
    assert "variant taken out" in caplog.messages
    weights.write_bytes(good)
    await until("back", lambda: not served(rig, "doubles").problem)
    assert await double(rig, 1) == 2


async def test_the_default_before_serves_while_the_default_is_taken_out(
    make_rig: MakeRig, registry: Registry, tmp_path: Path
) -> None:
    await put_doubler(registry, tmp_path)
    rig = await make_rig(placement="process", replicas=1)
    new = await put_doubler(registry, tmp_path, "v2")
    await registry.set_default("doubles", new.digest)
    await rig.settle()

    async def version() -> str:
        return str((await rig.infer(rows(1), model="doubles")).version)

    assert await version() == "v2"
    weights = registry.blob_path(new.artifact().variant("cloud").weights.digest)
    good = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(good[:-1] + b" ")
    (down,) = [one for one in rig.plane.served() if one.variant.digest == new.artifact().variant("cloud").digest]
    replica = down.queues[0].replica
    assert isinstance(replica, ProcessReplica)
    os.kill(pid_of(replica), signal.SIGKILL)
    await until("taken out", lambda: down.problem)
    assert await version() == "v1"
    assert isinstance(await outcome(rig.infer(rows(1), model="doubles", version="v2")), Unavailable)
    states = {state.version: state.state for state in rig.controller.index()}
    assert states == {"v1": "READY", "v2": "UNAVAILABLE"}
    weights.write_bytes(good)
    await until("back", lambda: not down.problem)
    assert await version() == "v2"


async def test_a_model_that_cannot_be_loaded_in_its_process_is_reported(
    make_rig: MakeRig, registry: Registry, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    layout = Layout.create(tmp_path / "bad")
    layout.pack([VariantDraft(spec=onnx_spec("broken"), weights=bad)], tag="v1")
    await put_layout(registry, layout)
    others = set(psutil.Process().children())  # of other tests
    rig = await make_rig(placement="process")
    (state,) = rig.controller.index()
    assert state.state == "UNAVAILABLE"
    assert "cannot load" in state.reason
    assert not set(psutil.Process().children()) - others


async def test_unloading_gives_all_memory_back(
    make_rig: MakeRig, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten times here; ``python -m benchmarks.replicas --cycles 100`` does it a hundred times with a larger model."""
    await put_doubler(registry, tmp_path)
    process = psutil.Process()
    others = set(process.children())  # of other tests
    rig = await make_rig(placement="process", replicas=1)
    resident: list[int] = []
    for _ in range(10):
        (one,) = rig.plane.served()
        x = np.ones((64, 4), np.float32)
        await rig.infer(x, model="doubles")
        pid = pid_of(worker(rig))
        await rig.controller._unload(one.variant.digest)
        assert not psutil.pid_exists(pid)
        gc.collect()
        resident.append(process.memory_info().rss)
        await rig.settle()
    assert resident[-1] <= 1.01 * resident[3]
    assert len(set(process.children()) - others) == 1
    assert "variant taken out" not in caplog.messages, "nobody missed it"


async def test_unloading_ends_a_process_also_in_the_middle_of_a_batch(
    make_rig: MakeRig, registry: Registry, tmp_path: Path
) -> None:
    await put_doubler(registry, tmp_path)
    rig = await make_rig(placement="process", replicas=1, drain_s=0.2)
    one, pid = served(rig, "doubles"), pid_of(worker(rig))
    os.kill(pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(outcome(one.queues[0].infer(Chunk(inputs={"x": rows(n)}, rows=1)))) for n in (1, 2)]
    await until("under way", lambda: one.queues[0].running_rows)
    assert await one.close(0.2), "a process can be ended"
    assert not psutil.pid_exists(pid)
    for answer in waiting:
        assert isinstance(await answer, Unavailable)


async def test_a_limit_of_the_spec_is_never_raised(make_rig: MakeRig, registry: Registry, tmp_path: Path) -> None:
    await put_layout(registry, onnx_layout(tmp_path, "v1"))
    rig = await make_rig(models={"mlp": ModelSettings(max_batch_rows=1000)})
    assert served(rig, "mlp").queues[0].replica.max_batch == 16
