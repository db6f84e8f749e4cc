"""Variants that compute their own confidence: it decides, it is checked, and no client sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving.load_plan import LoadPlan
from penstock.artifact.certificates import Certificate
from penstock.errors import InvalidInput
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import TensorSpec
from tests.edge_agent.datapath import (
    FROM_CLOUD,
    MODEL,
    OUTPUTS,
    certificate,
    data_path,
    load_plan,
    rows,
    running_cloud,
    variant_spec,
)
from tests.factories import onnx_model

PROBE = "penstock_probe"
TRUSTED, DOUBTED = [1.0, 0.0, 0.95], [9.0, 0.0, 0.05]  # the last column is how sure the head is
BROKEN = [float("inf"), 0.0, 0.95]


def plan(directory: Path, certified: Certificate) -> LoadPlan:
    """Return a variant with logits = x, and the last column as its own confidence."""
    spec = variant_spec(outputs=(*OUTPUTS, TensorSpec(name=PROBE, datatype="FP32", shape=(-1,))), probe_output=PROBE)
    found = load_plan(directory, certified=certified, spec=spec)
    nodes = [
        helper.make_node("Identity", ["x"], ["logits"]),
        helper.make_node("Gather", ["x", "last"], [PROBE], axis=1),
    ]
    constants = {"last": np.array(2, np.int64)}
    outputs = {"logits": ["n", 3], PROBE: ["n"]}
    onnx.save(onnx_model(nodes, constants, inputs={"x": ["n", 3]}, outputs=outputs), found.files.weights)
    return found


async def test_the_variants_own_confidence_decides_and_stays_on_the_device(tmp_path: Path) -> None:
    async with running_cloud() as cloud:
        probed = plan(tmp_path, certificate(score="probe", threshold=0.9))
        async with data_path(tmp_path, cloud.target, plan=probed) as path:
            assert [spec.name for spec in path.hosted.metadata.outputs] == ["logits"]
            kept = await path.infer(rows(TRUSTED))
            assert kept.parameters["confidence"] == pytest.approx(0.95)
            assert kept.parameters["served_by"] == "edge"
            mixed = await path.infer(rows(TRUSTED, DOUBTED))  # max_prob would have kept the other one
            assert set(kept.outputs) == set(mixed.outputs) == {"logits"}
            np.testing.assert_allclose(
                mixed.outputs["logits"], rows(TRUSTED, DOUBTED) + np.float32([[0.0], [FROM_CLOUD]])
            )
            with pytest.raises(InvalidInput, match=f"no output named '{PROBE}'; the model gives logits"):
                await path.ask(InferRequest(model=MODEL, inputs={"x": rows(TRUSTED)}, outputs=(PROBE,)))


async def test_an_answer_that_is_no_number_is_not_kept_however_sure_the_head_is(tmp_path: Path) -> None:
    probed = plan(tmp_path, certificate(score="probe", threshold=0.9))
    async with data_path(tmp_path, plan=probed) as path:
        outputs = {"logits": rows(BROKEN, TRUSTED), PROBE: np.float32([0.95, 0.95])}
        _, decision = await asyncio.to_thread(path.hosted.arrays.judge, {"x": rows(TRUSTED, TRUSTED)}, outputs, 2)
        assert decision.is_kept == [False, True]


async def test_a_score_that_the_variant_does_not_have_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    async with data_path(tmp_path, certified=certificate(score="probe")) as path:
        assert path.hosted.mode is CascadeMode.ESCALATE_ALL
        assert "'probe' is an output of the variant, and this variant has none" in path.hosted.mode_why
