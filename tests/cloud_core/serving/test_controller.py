from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_core.registry.registry import Registry
from cloud_core.settings import ServingSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import NotFound, Unavailable
from tests.cloud_core.rig import Rig, onnx_layout, onnx_spec, rig_of, soon, write_mlp
from tests.penstock.hosting.rig import outcome, rows

MakeRig = Callable[..., Rig]
Put = Callable[..., Any]


@pytest.fixture
async def make_rig(registry: Registry) -> AsyncIterator[MakeRig]:
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(rig_of(registry, ServingSettings(**settings)))
        return made[-1]

    yield make
    for rig in made:
        await rig.controller.close(5.0)


def states(rig: Rig) -> dict[str, str]:
    return {state.version: state.state for state in rig.controller.index()}


async def test_pushed_versions_are_loaded_and_named_by_tag_digest_or_prefix(
    make_rig: MakeRig, put: Put, tmp_path: Path
) -> None:
    rig = make_rig()
    one = await put(rig.registry, onnx_layout(tmp_path, "v1", seed=1))
    two = await put(rig.registry, onnx_layout(tmp_path, "v2", seed=2))
    await rig.settle()
    assert states(rig) == {"v1": "READY", "v2": "READY"}
    answers = {name: await rig.infer(rows(1), version=name) for name in ("", "v1", one, "v2", two, two[7:19])}
    assert {name: answer.version for name, answer in answers.items()} == {
        "": "v1", "v1": "v1", one: "v1", "v2": "v2", two: "v2", two[7:19]: "v2",
    }  # fmt: skip
    assert answers["v1"].outputs["logits"].tolist() != answers["v2"].outputs["logits"].tolist()
    assert answers["v2"].parameters["variant"] == rig.registry.artifact(two).variant("cloud").digest


async def test_versions_that_share_a_variant_share_what_is_loaded(make_rig: MakeRig, put: Put, tmp_path: Path) -> None:
    rig = make_rig()
    layout = onnx_layout(tmp_path, "v1")
    await put(rig.registry, layout)
    await put(rig.registry, layout, "also-v1")
    await rig.settle()
    assert states(rig) == {"v1": "READY", "also-v1": "READY"}
    assert len(rig.controller.router.served) == 1


async def test_the_default_moves_without_a_restart(make_rig: MakeRig, put: Put, tmp_path: Path) -> None:
    rig = make_rig()
    await put(rig.registry, onnx_layout(tmp_path, "v1", seed=1))
    two = await put(rig.registry, onnx_layout(tmp_path, "v2", seed=2))
    await rig.settle()
    assert (await rig.infer(rows(1))).version == "v1"
    await rig.registry.set_default("mlp", two)
    assert (await rig.infer(rows(1))).version == "v2"


async def test_a_version_that_cannot_be_loaded_is_reported_and_the_others_are_served(
    make_rig: MakeRig, put: Put, tmp_path: Path
) -> None:
    rig = make_rig()
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    layout = Layout.create(tmp_path / "layout-bad")
    layout.pack([VariantDraft(spec=onnx_spec("broken"), weights=bad)], tag="v1")
    await put(rig.registry, layout)
    await put(rig.registry, onnx_layout(tmp_path, "v1"))
    await rig.settle()
    (broken,) = [state for state in rig.controller.index() if state.model == "broken"]
    assert broken.state == "UNAVAILABLE"
    assert "cannot load" in broken.reason
    refused = await outcome(rig.infer(rows(1), model="broken"))
    assert isinstance(refused, Unavailable)
    assert "cannot load" in refused.message
    assert refused.retry_after_s is not None
    assert (await rig.infer(rows(1))).model == "mlp"


async def test_a_blob_that_is_damaged_on_disk_is_not_served(make_rig: MakeRig, put: Put, tmp_path: Path) -> None:
    rig = make_rig()
    digest = await put(rig.registry, onnx_layout(tmp_path, "v1"))
    weights = rig.registry.blob_path(rig.registry.artifact(digest).variant("cloud").weights.digest)
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    await rig.settle()
    (state,) = rig.controller.index()
    assert state.state == "UNAVAILABLE"
    assert "tampered" in state.reason


async def test_a_version_for_devices_only_is_not_found(make_rig: MakeRig, put: Put, tmp_path: Path) -> None:
    rig = make_rig()
    layout = Layout.create(tmp_path / "layout")
    spec = onnx_spec("edge-only", role="edge")
    layout.pack([VariantDraft(spec=spec, weights=write_mlp(tmp_path / "m.onnx"))], tag="v1")
    await put(rig.registry, layout)
    await rig.settle()
    refused = await outcome(rig.infer(rows(1), model="edge-only"))
    assert isinstance(refused, NotFound)
    assert "devices only" in refused.message


async def test_what_is_gone_from_the_registry_is_unloaded(make_rig: MakeRig, put: Put, tmp_path: Path) -> None:
    rig = make_rig()
    await put(rig.registry, onnx_layout(tmp_path, "v1", seed=1))
    two = await put(rig.registry, onnx_layout(tmp_path, "v2", seed=2))
    await rig.settle()
    await rig.registry.delete_manifest("mlp", two)
    await rig.settle()
    assert states(rig) == {"v1": "READY"}
    assert len(rig.controller.router.served) == 1
    assert isinstance(await outcome(rig.infer(rows(1), version="v2")), NotFound)


async def test_an_unloaded_version_is_loaded_for_who_asks_and_the_default_stays(
    make_rig: MakeRig, put: Put, tmp_path: Path, clock: Any
) -> None:
    rig = make_rig(max_loaded_models=2)
    for number in (1, 2, 3):
        clock.advance(1)
        await put(rig.registry, onnx_layout(tmp_path, f"v{number}", seed=number))
    await rig.settle()
    assert states(rig) == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "READY"}
    refused = await outcome(rig.infer(rows(1), version="v2"))
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_s == 1.0
    assert states(rig)["v2"] == "LOADING"
    await rig.settle()
    assert (await rig.infer(rows(1), version="v2")).version == "v2"
    assert states(rig) == {"v1": "READY", "v2": "READY", "v3": "UNAVAILABLE"}


async def test_when_every_slot_is_pinned_the_answer_says_which_setting_is_in_the_way(
    make_rig: MakeRig, put: Put, tmp_path: Path
) -> None:
    rig = make_rig(max_loaded_models=1)
    await put(rig.registry, onnx_layout(tmp_path, "v1", seed=1))
    await put(rig.registry, onnx_layout(tmp_path, "v2", seed=2))
    await rig.settle()
    await outcome(rig.infer(rows(1), version="v2"))
    await rig.settle()
    refused = await outcome(rig.infer(rows(1), version="v2"))
    assert isinstance(refused, Unavailable)
    assert "max_loaded_models" in refused.message


async def test_a_failed_version_is_tried_again_later(
    make_rig: MakeRig, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    digest = await put(rig.registry, onnx_layout(tmp_path, "v1"))
    weights = rig.registry.blob_path(rig.registry.artifact(digest).variant("cloud").weights.digest)
    weights.chmod(0o644)
    good = weights.read_bytes()
    weights.write_bytes(b"damaged")
    wake_at = await rig.controller.reconcile()
    assert wake_at is not None
    weights.write_bytes(good)
    monkeypatch.setattr(rig.controller, "_now", lambda: wake_at)
    assert await rig.controller.reconcile() is None
    assert states(rig) == {"v1": "READY"}


async def test_more_replicas_only_for_models_that_do_not_run_on_the_loop(
    make_rig: MakeRig, put: Put, tmp_path: Path
) -> None:
    rig = make_rig(replicas=3, inline_below_s=10.0)
    await put(rig.registry, onnx_layout(tmp_path, "v1"))
    await rig.settle()
    assert [len(served.queues) for served in rig.plane.served()] == [1]
    slow = make_rig(replicas=3, inline_below_s=0.0, placement="inline")
    await slow.settle()
    assert [len(served.queues) for served in slow.plane.served()] == [3]
    answers = await asyncio.gather(*(slow.infer(rows(i)) for i in range(9)))
    assert len(answers) == 9


async def test_a_push_wakes_the_loop_that_loads(make_rig: MakeRig, put: Put, tmp_path: Path) -> None:
    rig = make_rig()
    task = asyncio.create_task(rig.controller.run())
    await rig.controller.settled.wait()
    await put(rig.registry, onnx_layout(tmp_path, "v1"))
    await soon(lambda: states(rig) == {"v1": "READY"})
    task.cancel()
