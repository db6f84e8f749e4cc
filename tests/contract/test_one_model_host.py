"""What one room refuses to load, the others refuse in the same words: a device, the core, and ``penstock certify``.

Each variant goes the whole way through the rooms' own code, from an artifact on disk. What loading refuses in detail is
shown in tests/penstock/hosting/test_loading.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from compiler.artifact import replay
from edge_agent.policy.model_state import Release, Slot
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.hosting import Hosting
from edge_agent.updates.store import Store
from penstock.artifact import golden
from penstock.artifact.blobs import BlobStore
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import PenstockError
from penstock.wire.tensors import Array, TensorSpec
from tests.cloud_core.conftest import put_layout
from tests.cloud_core.rig import rig_of
from tests.factories import onnx_model, variant_spec

MODEL = "toy"
ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def tensor(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def linear(path: Path, *, one_row_only: bool = False, width: int | str = 4) -> Array:
    """x [n, width] -> logits [n, 3], in one file; return its weights. ``one_row_only``: it fails on any other batch."""
    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    constants: dict[str, Array] = {"w": weights}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    if one_row_only:  # looks up entry n - 1 of a table of one, which no shape inference foresees
        constants |= {"zero": np.array(0), "one": np.array(1), "table": np.zeros(1, np.float32)}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["n"]),
            helper.make_node("Sub", ["n", "one"], ["last"]),
            helper.make_node("Gather", ["table", "last"], ["found"]),
            helper.make_node("Add", ["product", "found"], ["logits"]),
        ]
    onnx.save(onnx_model(nodes, constants, inputs={"x": ["n", width]}), path)
    return weights


@dataclass(frozen=True, kw_only=True)
class Case:
    """A variant that is not as it should be.

    Attributes:
        says: a part of the refusal; "" where it is loaded.
        certify_says: where certify, which promises something, wants more; None for the same.
    """

    says: str = ""
    certify_says: str | None = None
    spec: Mapping[str, Any] | None = None
    weights: Mapping[str, Any] | None = None
    has_golden: bool = True
    off_by: float = 0.0
    golden_rows: int = 3
    is_damaged: bool = False


CASES = {
    "as it should be": Case(),
    "wrong digest": Case(is_damaged=True, says="corrupt, truncated or tampered with"),
    "wrong shape": Case(spec={"inputs": (tensor("x", -1, 5),)}, says="inputs are x FP32[-1, 4], described x FP32"),
    "wrong datatype": Case(
        spec={"inputs": (tensor("x", -1, 4, datatype="FP64"),)}, says="inputs are x FP32[-1, 4], described x FP64"
    ),
    "wrong name": Case(
        spec={"outputs": (tensor("scores", -1, 3),), "score_output": "scores"}, says="outputs are logits FP32[-1, 3]"
    ),
    "no such score": Case(spec={"score_output": "scores"}, says="score_output 'scores' is no output"),
    "golden mismatch": Case(off_by=0.5, says="golden output 'logits' is off by 0.5"),
    "missing golden": Case(has_golden=False, certify_says="has no golden vectors"),
    "fails on its golden rows": Case(weights={"one_row_only": True}, golden_rows=1, says="fails on its golden rows"),
    "fails on zeros": Case(
        weights={"one_row_only": True},
        has_golden=False,
        says="the model fails on zeros",
        certify_says="has no golden vectors",
    ),
    "free dimensions that want more than one": Case(
        weights={"width": "w"},
        spec={"inputs": (tensor("x", -1, -1),)},
        has_golden=False,
        certify_says="has no golden vectors",
    ),
}


def packed(directory: Path, case: Case) -> Layout:
    """One artifact with the variant for a device and for the core."""
    path = directory / "toy.onnx"
    weights = linear(path, **(case.weights or {}))
    x = ROWS[: case.golden_rows]
    vectors = golden.encode(Golden(inputs={"x": x}, outputs={"logits": x @ weights + np.float32(case.off_by)}))
    values: dict[str, Any] = {"model": MODEL, "target": "any", "max_batch": 8} | dict(case.spec or {})
    specs = [variant_spec("edge", **values), variant_spec("cloud", **values)]
    layout = Layout.create(directory / "layout")
    layout.pack(
        [VariantDraft(spec=s, weights=path, golden=vectors if case.has_golden else None) for s in specs], tag="v1"
    )
    return layout


def damage(blobs: BlobStore, layout: Layout, case: Case) -> None:
    if case.is_damaged:
        path = blobs.path(layout.artifact().variant("edge").weights.digest)
        path.write_bytes(path.read_bytes()[:-1] + b"!")


async def on_a_device(layout: Layout, directory: Path, case: Case) -> str:
    store = Store(directory)
    for descriptor in layout.reachable():
        store.blobs.put_file(layout.blobs.path(descriptor.digest))
    damage(store.blobs, layout, case)
    release = Release(version="v1", artifact_digest=layout.digest)
    slot = Slot(release=release, variant_digest=layout.artifact().variant("edge").digest)
    house = Hosting(Outcomes(now=lambda: 0.0))
    try:
        hosted = await house.prepare(store.load_plan(MODEL, slot))
    except PenstockError as error:
        return error.message
    await house.retire(hosted)
    return ""


async def in_the_core(layout: Layout, directory: Path, case: Case) -> str:
    database = Database.open(directory / "state.db")
    registry = Registry.open(directory, database)
    await put_layout(registry, layout)
    damage(registry.store, layout, case)
    rig = rig_of(registry)
    await rig.settle()
    (state,) = rig.controller.index()
    assert (state.state == "READY") == (state.reason == "")
    await rig.controller.close(5.0)
    database.close()
    return state.reason


async def for_certify(layout: Layout, directory: Path, case: Case) -> str:
    damage(layout.blobs, layout, case)

    def open_and_close() -> str:
        try:
            with replay.opened(layout, layout.artifact().variant("edge")):
                return ""
        except PenstockError as error:
            return error.message

    return await asyncio.to_thread(open_and_close)


ROOMS: Mapping[str, Callable[..., Any]] = {"device": on_a_device, "core": in_the_core, "certify": for_certify}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("case", CASES)
async def test_every_room_refuses_the_same(tmp_path: Path, case: str, room: str) -> None:
    given = CASES[case]
    layout = packed(tmp_path, given)
    refusal = await ROOMS[room](layout, tmp_path / "room", given)
    says = given.certify_says if room == "certify" and given.certify_says is not None else given.says
    assert says in refusal
    assert bool(says) == bool(refusal)
