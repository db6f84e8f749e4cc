from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import uvloop
from onnx import helper

from cloud_core.registry.registry import Registry
from cloud_core.settings import ServingSettings
from cloud_core.tenants.settings import TenantSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import (
    DeadlineExceeded,
    InvalidInput,
    MemoryFull,
    NotFound,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from penstock.hosting.process_replica.settings import ModelSettings
from penstock.hosting.replica import EngineReplica
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import TensorSpec
from tests.cloud_core.conftest import put_layout
from tests.cloud_core.rig import Rig, Told, onnx_layout, onnx_spec, rig_of
from tests.factories import onnx_model
from tests.penstock.hosting.rig import outcome, rows, until

MakeRig = Callable[..., Any]
SHOP = TenantSettings(name="shop", token="shop-secret", rate_rows_per_s=10, burst_rows=20)
FREE = TenantSettings(name="free", token="free-secret")


@pytest.fixture
async def make_rig(registry: Registry, put: Any, tmp_path: Path) -> AsyncIterator[MakeRig]:
    made: list[Rig] = []
    await put(registry, onnx_layout(tmp_path, "v1"))

    async def make(*, tenants: tuple[TenantSettings, ...] = (), **settings: Any) -> Rig:
        rig = rig_of(registry, ServingSettings(**{"inline_below_s": 10.0, **settings}), tenants)
        made.append(rig)
        await rig.settle()
        return rig

    yield make
    for rig in made:
        await rig.controller.close(5.0)


async def test_an_answer_carries_version_variant_and_the_outputs_that_were_wanted(make_rig: MakeRig) -> None:
    rig = await make_rig()
    answer = await rig.infer(rows(1, 2), id="r1", outputs=("logits",))
    assert (answer.model, answer.version, answer.id) == ("mlp", "v1", "r1")
    assert list(answer.outputs) == ["logits"]
    assert answer.outputs["logits"].shape == (2, 3)
    assert answer.parameters["variant"].startswith("sha256:")
    assert rig.measures.routes["mlp", "v1"].requests == {"ok": 1}
    assert rig.measures.routes["mlp", "v1"].rows == 2


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"inputs": {"y": rows(1)}}, "inputs.y"),
        ({"inputs": {}}, "inputs.x"),
        ({"inputs": {"x": rows(1).astype(np.float64)}}, "inputs.x"),
        ({"inputs": {"x": np.zeros((1, 5), np.float32)}}, "inputs.x"),
        ({"inputs": {"x": np.zeros((0, 4), np.float32)}}, "inputs"),
        ({"inputs": {"x": rows(*range(9))}}, "inputs"),
        ({"outputs": ("probabilities",)}, "outputs"),
        ({"parameters": {"timeout": "soon"}}, "parameters.timeout"),
        ({"parameters": {"timeout": -5}}, "parameters.timeout"),
        ({"parameters": {"priority": -1}}, "parameters.priority"),
        ({"parameters": {"sequence_id": 7}}, "parameters.sequence_id"),
    ],
)
async def test_bad_input_says_which_field(make_rig: MakeRig, request_: dict[str, Any], field: str) -> None:
    rig = await make_rig(max_rows_per_request=8)
    values = {"x": rows(1), **request_}
    if "inputs" in values:
        values.pop("x")
        from penstock.wire.inference import InferRequest

        context = rig.context()
        with pytest.raises(InvalidInput) as caught, rig.plane.admit(context, "mlp", "") as ticket:
            await rig.plane.infer(ticket, context, InferRequest(model="mlp", inputs=values["inputs"]))
    else:
        with pytest.raises(InvalidInput) as caught:
            await rig.infer(**values)
    assert caught.value.field == field
    assert rig.measures.routes["mlp", "v1"].requests == {"invalid-input": 1}


async def test_unknown_names_list_what_exists_and_are_no_label(make_rig: MakeRig) -> None:
    rig = await make_rig()
    with pytest.raises(NotFound, match="mlp"):
        await rig.infer(rows(1), model="ghost")
    with pytest.raises(NotFound, match="v1"):
        await rig.infer(rows(1), version="v9")
    assert list(rig.measures.routes) == [("mlp", "v1")] or not rig.measures.routes
    assert rig.measures.refused == {"not-found": 2}


async def test_the_earliest_of_all_limits_counts(make_rig: MakeRig) -> None:
    rig = await make_rig()
    for timeout_s in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            await rig.infer(rows(1), timeout_s=timeout_s, parameters={"timeout": 10_000_000})
    assert (await rig.infer(rows(1), parameters={"timeout": 0})).version == "v1"  # 0 is none, as in Triton


async def test_tenants_need_their_token_and_keep_to_their_rate(make_rig: MakeRig) -> None:
    rig = await make_rig(tenants=(SHOP, FREE))
    with pytest.raises(Unauthenticated):
        await rig.infer(rows(1), token="wrong-secret")
    await rig.infer(rows(*range(20)), token="shop-secret")
    with pytest.raises(QuotaExceeded) as caught:
        await rig.infer(rows(*range(10)), token="shop-secret")
    assert caught.value.limit == 20
    with pytest.raises(InvalidInput, match="at once"):
        await rig.infer(rows(*range(21)), token="shop-secret")
    await rig.infer(rows(*range(100)), token="free-secret")


async def test_requests_in_flight_are_bounded(make_rig: MakeRig) -> None:
    rig = await make_rig(max_inflight_requests=1)
    context = rig.context()
    with rig.plane.admit(context, "mlp", ""):
        with pytest.raises(QueueFull):
            rig.plane.admit(context, "mlp", "")
        assert rig.measures.inflight == 1
    with rig.plane.admit(context, "mlp", ""):
        pass
    assert rig.measures.inflight == 0


async def test_bytes_in_flight_are_bounded_and_refusals_counted_apart(make_rig: MakeRig) -> None:
    rig = await make_rig(max_inflight_bytes=1000)
    with rig.plane.admit(rig.context(), "mlp", "", 5000):
        with pytest.raises(MemoryFull, match="5000 bytes are in flight and 10 more") as refused:
            rig.plane.admit(rig.context(), "mlp", "", 10)
        assert refused.value.retry_after_s
        with pytest.raises(MemoryFull):
            rig.plane.admit(rig.context(), "mlp", "", None)
    assert rig.measures.refused == {"memory-full": 2}
    with rig.plane.admit(rig.context(), "mlp", "", 300):
        assert (await rig.infer(rows(1))).version == "v1"
        assert rig.measures.inflight_bytes == 300
    assert rig.measures.inflight_bytes == rig.measures.inflight == 0
    assert all(served.inflight_bytes == 0 for served in rig.plane.served())


async def test_tensors_that_are_larger_than_their_body_count_as_what_they_are(make_rig: MakeRig) -> None:
    rig = await make_rig(max_inflight_bytes=1000)
    with rig.plane.admit(rig.context(), "mlp", "", 100):
        context, x = rig.context(), np.zeros((32, 4), np.float32)
        with rig.plane.admit(context, "mlp", "", 50) as ticket, pytest.raises(MemoryFull, match="100 bytes are in"):
            await rig.plane.infer(ticket, context, InferRequest(model="mlp", version="", inputs={"x": x}))
        with rig.plane.admit(context, "mlp", "", 50) as ticket:
            await rig.plane.infer(ticket, context, InferRequest(model="mlp", version="", inputs={"x": x[:16]}))
            assert rig.measures.inflight_bytes == 100 + 16 * 16
    assert rig.measures.inflight_bytes == 0


async def test_drain_fails_readiness_at_once_keeps_liveness_and_finishes_what_was_admitted(make_rig: MakeRig) -> None:
    rig = await make_rig()
    plane = rig.plane
    context = rig.context()
    assert plane.is_ready
    with plane.admit(context, "mlp", "") as ticket:
        plane.begin_drain()
        assert not plane.is_ready
        assert plane.is_live
        refused = await outcome(rig.infer(rows(1)))
        assert isinstance(refused, Unavailable)
        assert refused.retry_after_s is not None
        assert not await plane.drained(0.0)
        from penstock.wire.inference import InferRequest

        answer = await plane.infer(ticket, context, InferRequest(model="mlp", inputs={"x": rows(1)}))
        assert answer.version == "v1"
    assert await plane.drained(5.0)


async def test_a_size_that_the_variant_was_not_made_for_is_refused_with_those_it_was(
    make_rig: MakeRig, registry: Registry, put: Any, tmp_path: Path
) -> None:
    takes = TensorSpec(name="x", datatype="FP32", shape=(-1, -1), sizes=((), (3, 6)))
    spec = onnx_spec("wide", inputs=(takes,), outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, -1)),))
    graph = onnx_model(
        [helper.make_node("Identity", ["x"], ["logits"])], inputs={"x": ["n", "w"]}, outputs={"logits": ["n", "w"]}
    )
    onnx.save(graph, tmp_path / "wide.onnx")
    layout = Layout.create(tmp_path / "wide")
    layout.pack([VariantDraft(spec=spec, weights=tmp_path / "wide.onnx")], tag="v1")
    await put(registry, layout)
    rig = await make_rig()
    refused = await outcome(rig.infer(np.ones((1, 4), np.float32), model="wide"))
    assert isinstance(refused, InvalidInput)
    assert refused.message.startswith("inputs.x: dimension 1 is 4, but the model was made for 3 or 6; resize")
    assert (await rig.infer(np.ones((1, 6), np.float32), model="wide")).outputs["logits"].shape == (1, 6)


async def test_a_drain_with_nothing_to_wait_for_is_over_at_once(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.plane.begin_drain()
    assert await rig.plane.drained(0.0)


async def test_a_batch_that_hangs_costs_liveness_and_a_busy_queue_does_not(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make_rig(stall_s=60.0, inline_below_s=0.0, placement="inline")
    queue = rig.plane.served()[0].queues[0]
    assert isinstance(queue.replica, EngineReplica)
    gate = threading.Event()
    queue.replica.thread.submit(gate.wait)
    hanging = asyncio.create_task(rig.infer(rows(1)))
    await until(lambda: queue.running_since)
    assert queue.running_since is not None
    for seconds, is_live in ((59.0, True), (61.0, False)):
        monkeypatch.setattr(rig.plane, "_now", lambda now=queue.running_since + seconds: now)
        assert rig.plane.is_live is is_live
    gate.set()
    await hanging


async def test_not_ready_before_what_should_be_loaded_was_tried(registry: Registry) -> None:
    rig = rig_of(registry)
    assert not rig.plane.is_ready
    await rig.settle()
    assert rig.plane.is_ready
    await rig.controller.close(1.0)


async def test_metadata_names_every_version_and_the_models_tensors(make_rig: MakeRig) -> None:
    rig = await make_rig()
    metadata = rig.plane.metadata("mlp")
    assert metadata.versions == ("v1",)
    assert metadata.platform == "onnxruntime_onnx"
    assert [spec.name for spec in (*metadata.inputs, *metadata.outputs)] == ["x", "logits"]
    with pytest.raises(NotFound):
        rig.plane.metadata("ghost")


async def test_a_cancelled_request_is_counted_as_such(make_rig: MakeRig) -> None:
    rig = await make_rig(max_delay_s=30.0)
    task = asyncio.create_task(rig.infer(rows(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await outcome(task), asyncio.CancelledError)
    assert rig.measures.routes["mlp", "v1"].requests == {"cancelled": 1}
    assert rig.measures.inflight == 0


def test_what_takes_a_fifth_of_a_millisecond_is_measured_as_such_under_uvloop(
    registry: Registry, tmp_path: Path
) -> None:
    took_s, times = 0.0002, 10

    async def test() -> float:
        await put_layout(registry, onnx_layout(tmp_path, "v1"))
        rig = rig_of(registry)
        await rig.settle()
        for _ in range(times):
            with rig.plane.admit(rig.context(), "mlp", ""):
                until_s = time.perf_counter() + took_s
                while time.perf_counter() < until_s:
                    pass
        (route,) = rig.measures.routes.values()
        assert await rig.controller.close(5.0)
        return route.duration_s.total

    assert uvloop.run(test()) >= times * took_s


async def test_a_tenant_has_limits_of_its_own_and_its_place_comes_back(make_rig: MakeRig) -> None:
    limited = TenantSettings(name="kiosk", token="kiosk-secret", max_inflight_requests=1, requests_per_day=3)
    rig = await make_rig(tenants=(limited, FREE))
    context = rig.context(token="kiosk-secret")
    with rig.plane.admit(context, "mlp", "", 10), pytest.raises(QuotaExceeded, match="in flight"):
        rig.plane.admit(context, "mlp", "", 10)
    with pytest.raises(NotFound):
        await rig.infer(rows(1), model="ghost", token="kiosk-secret")  # costs nothing of the day
    for _ in range(2):
        await rig.infer(rows(1), token="kiosk-secret")
    with pytest.raises(QuotaExceeded, match="midnight UTC"):
        await rig.infer(rows(1), token="kiosk-secret")
    await rig.infer(rows(1), token="free-secret")
    assert rig.measures.refused == {"quota-exceeded": 2, "not-found": 1}


async def test_a_tenant_learns_nothing_of_models_that_it_may_not_ask(make_rig: MakeRig) -> None:
    mine = TenantSettings(name="mine", token="mine-secret", models=("ml?", "my-*"))
    other = TenantSettings(name="other", token="other-secret", models=("others-*",))
    rig = await make_rig(tenants=(mine, other))
    await rig.infer(rows(1), token="mine-secret")
    said = {}
    for model in ("mlp", "ghost"):
        with pytest.raises(PermissionDenied) as refused:
            await rig.infer(rows(1), model=model, token="other-secret")
        said[model] = refused.value.message
    assert said["mlp"] == said["ghost"]
    with pytest.raises(NotFound) as unknown:
        await rig.infer(rows(1), model="my-ghost", token="mine-secret")
    assert "mlp" not in unknown.value.message


async def test_a_better_priority_than_a_tenant_may_have_is_not_given(make_rig: MakeRig) -> None:
    low = TenantSettings(name="low", token="low-secret", best_priority=3)
    rig = await make_rig(tenants=(low, FREE))
    for token, gets in (("low-secret", 3), ("free-secret", 1)):
        context = msgspec.structs.replace(rig.context(token=token), priority=1)
        with rig.plane.admit(context, "mlp", "", 10) as ticket:
            allowed = context if ticket.account is None else ticket.account.within_rights(context)
            assert allowed.priority == gets


async def test_an_answer_that_is_cached_needs_no_room_in_a_full_queue_and_goes_with_its_version(
    make_rig: MakeRig,
) -> None:
    models = {"mlp": ModelSettings(cache_bytes=1_000_000)}
    rig = await make_rig(models=models, max_queue_rows=2, inline_below_s=0.0, placement="inline", replicas=1)
    told = Told()
    rig.plane.observers.add(told)
    (served,) = rig.plane.served()
    first = await rig.infer(rows(1))
    replica = served.queues[0].replica
    assert isinstance(replica, EngineReplica)
    gate = threading.Event()
    replica.thread.submit(gate.wait)
    running = asyncio.create_task(rig.infer(rows(2, 2)))
    await until(lambda: served.queues[0].running_rows == 2)
    waiting = asyncio.create_task(rig.infer(rows(3, 3)))
    await until(lambda: served.queues[0].queue_rows == 2)
    with pytest.raises(QueueFull):
        await rig.infer(rows(4))
    again = await rig.infer(rows(1))
    gate.set()
    await asyncio.gather(running, waiting)
    assert ("cache" in first.parameters, again.parameters["cache"]) == (False, "hit")
    np.testing.assert_array_equal(first.outputs["logits"], again.outputs["logits"])
    assert rig.measures.routes["mlp", "v1"].rows == 6  # what is answered counts, wherever it comes from
    hit = next(one for one in told.requests if one.response is again)
    assert (hit.rows, hit.queued_s, hit.ran_s) == (1, None, None)
    assert served.cache.size_bytes > 0
    assert await rig.controller.close(5.0)
    assert served.cache.size_bytes == 0
