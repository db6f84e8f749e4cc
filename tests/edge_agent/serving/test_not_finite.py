"""A broken sensor is not a broken network: rows, and answers, that hold NaN or infinity have a reason of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edge_agent.settings import CascadeSettings, EscalationSettings
from penstock.errors import InvalidInput, Unavailable
from penstock.wire.outcomes import OutcomeCounts
from penstock.wire.tensors import TensorSpec
from tests.edge_agent.datapath import (
    FROM_CLOUD,
    NAN,
    SURE,
    UNSURE,
    Rows,
    certificate,
    data_path,
    load_plan,
    rows,
    running_cloud,
    variant_spec,
)

INFINITE = [float("inf"), 0.0, 0.0]
AUDITED = CascadeSettings(audit_share=1.0)
FAIL = CascadeSettings(on_unreachable="fail")


def tolerant(x: Rows) -> Rows:
    """A cloud that has an answer to missing values."""
    return np.asarray(np.nan_to_num(x, posinf=0.0, neginf=0.0) + np.float32(FROM_CLOUD), dtype=np.float32)


def breaks(x: Rows) -> Rows:
    """A cloud whose engine fails on what is not finite."""
    if not np.isfinite(x).all():
        raise ValueError("the engine failed")
    return np.asarray(x + np.float32(FROM_CLOUD), dtype=np.float32)


@pytest.mark.parametrize("broken", [NAN, INFINITE])
@pytest.mark.parametrize("mode", ["cascade", "escalate_all", "cloud_only"])
async def test_without_the_cloud_a_row_that_is_not_finite_says_so(
    tmp_path: Path, mode: str, broken: list[float]
) -> None:
    async with data_path(tmp_path, is_certified=mode != "escalate_all") as path:
        if mode == "cloud_only":
            path.hosted.note_audit(audited=100, harm=50)
        answer = await path.infer(rows(broken, UNSURE), explain=True)
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("edge", "not_finite")
        assert list(answer.outputs["penstock_reason"]) == [b"not_finite", b"cloud_unreachable"]
        counts = path.hosted.counts
        assert (counts.not_finite, counts.unreachable, counts.requests) == (1, 1, 2)


@pytest.mark.parametrize("broken", [NAN, INFINITE])
async def test_a_cloud_that_knows_no_better_is_not_out_of_reach(tmp_path: Path, broken: list[float]) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        for _ in range(5):
            answer = await path.infer(rows(broken, SURE))
            assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("edge", "not_finite")
        assert path.escalator.is_reachable
        assert path.hosted.counts == OutcomeCounts(kept=5, not_finite=5)


async def test_a_cloud_that_takes_missing_values_answers_and_the_reason_stays(tmp_path: Path) -> None:
    async with running_cloud(answer=tolerant) as cloud, data_path(tmp_path, cloud.target) as path:
        answer = await path.infer(rows(SURE, NAN, UNSURE), explain=True)
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("mixed", "not_finite")
        assert answer.parameters["rows_escalated"] == 2
        assert list(answer.outputs["penstock_served_by"]) == [b"edge", b"cloud", b"cloud"]
        assert list(answer.outputs["penstock_reason"]) == [b"confident", b"not_finite", b"escalated"]
        assert np.isfinite(answer.outputs["logits"]).all()
        assert path.hosted.counts == OutcomeCounts(kept=1, escalated=1, not_finite=1)


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
async def test_a_cloud_that_fails_on_broken_rows_stays_open_for_the_others(
    tmp_path: Path, status: grpc.StatusCode
) -> None:
    async with running_cloud(failure=status) as cloud, data_path(tmp_path, cloud.target) as path:
        for _ in range(5):
            assert (await path.infer(rows(NAN))).parameters["reason"] == "not_finite"
        assert path.escalator.is_reachable
        cloud.failure = None
        assert (await path.infer(rows(UNSURE))).parameters["reason"] == "escalated"


async def test_broken_rows_travel_alone_so_that_no_other_row_fails_with_them(tmp_path: Path) -> None:
    """Also within one request, and while rows of other requests wait for the same call."""
    escalation = EscalationSettings(max_delay_s=0.05)
    async with (
        running_cloud(answer=breaks) as cloud,
        data_path(tmp_path, cloud.target, escalation=escalation) as path,
    ):
        answers = await asyncio.gather(*(path.infer(rows(UNSURE, NAN), explain=True) for _ in range(8)))
        assert {tuple(answer.outputs["penstock_reason"]) for answer in answers} == {(b"escalated", b"not_finite")}
        assert path.escalator.is_reachable
        assert path.hosted.counts == OutcomeCounts(escalated=8, not_finite=8)


async def test_broken_rows_do_not_use_up_the_budget_of_the_others(tmp_path: Path) -> None:
    escalation = EscalationSettings(rate_rows_per_s=0.001, burst_rows=1)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, escalation=escalation) as path:
        answer = await path.infer(rows(NAN, UNSURE, NAN), explain=True)
        assert list(answer.outputs["penstock_reason"]) == [b"not_finite", b"escalated", b"not_finite"]


async def test_an_outage_is_still_an_outage(tmp_path: Path) -> None:
    async with (
        running_cloud(failure=grpc.StatusCode.UNAVAILABLE) as cloud,
        data_path(tmp_path, cloud.target) as path,
    ):
        for _ in range(3):
            assert (await path.infer(rows(NAN))).parameters["reason"] == "not_finite"
        assert not path.escalator.is_reachable


async def test_an_answer_of_the_device_that_is_not_finite_says_so(tmp_path: Path) -> None:
    """As when FP16 overflows: the row is finite, what the model makes of it is not."""
    import onnx
    from onnx import helper

    from tests.factories import onnx_model

    plan = load_plan(tmp_path, certified=certificate())
    squared = helper.make_node("Exp", ["x"], ["logits"])
    onnx.save(onnx_model([squared], inputs={"x": ["n", 3]}, outputs={"logits": ["n", 3]}), plan.files.weights)
    overflows = rows([1000.0, 0.0, 0.0])
    async with data_path(tmp_path, plan=plan) as path:
        assert (await path.infer(overflows)).parameters["reason"] == "not_finite"
        assert path.hosted.counts == OutcomeCounts(not_finite=1)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, plan=plan) as path:
        assert (await path.infer(overflows)).parameters["reason"] == "escalated"
        assert path.hosted.counts == OutcomeCounts(escalated=1)


async def test_an_answer_of_the_cloud_that_is_not_finite_is_no_outage(tmp_path: Path) -> None:
    async with running_cloud(answer=lambda x: x * np.nan) as cloud, data_path(tmp_path, cloud.target) as path:
        for _ in range(5):
            answer = await path.infer(rows(UNSURE))
            np.testing.assert_array_equal(answer.outputs["logits"], rows(UNSURE))
            assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("edge", "not_finite")
        assert path.escalator.is_reachable
        assert path.hosted.counts == OutcomeCounts(not_finite=5)


@pytest.mark.parametrize("answer", [tolerant, lambda x: x], ids=["the cloud answers", "the cloud has no answer"])
async def test_broken_rows_are_no_evidence(tmp_path: Path, answer: Any) -> None:
    """The promise is about the examples, which are finite: half of the rows broken would water the evidence down."""
    async with (
        running_cloud(answer=answer) as cloud,
        data_path(tmp_path, cloud.target, cascade=AUDITED, random=lambda: 0.0) as path,
    ):
        await path.infer(rows(NAN, SURE, INFINITE, UNSURE))
        await path.infer(rows(NAN))
        await path.dataplane.auditor.rest()
        assert (path.hosted.counts.audited, path.hosted.counts.audit_harm) == (2, 0)


async def test_a_fixed_batch_with_a_broken_row_goes_up_whole_and_is_no_evidence(tmp_path: Path) -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=(2, 3))
    spec = variant_spec(inputs=(fixed,), outputs=(TensorSpec(name="logits", datatype="FP32", shape=(2, 3)),))
    plan = load_plan(tmp_path, certified=certificate(), spec=spec, batch=2)
    async with (
        running_cloud(answer=tolerant) as cloud,
        data_path(tmp_path, cloud.target, plan=plan, cascade=AUDITED, random=lambda: 0.0) as path,
    ):
        answer = await path.infer(rows(NAN, SURE), explain=True)
        await path.dataplane.auditor.rest()
        assert cloud.seen_rows == [2]
        assert list(answer.outputs["penstock_reason"]) == [b"not_finite", b"escalated"]
        assert path.hosted.counts == OutcomeCounts(escalated=1, not_finite=1)


async def test_fail_blames_the_row_where_the_cloud_has_no_answer_to_it(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, cascade=FAIL) as path:
        with pytest.raises(InvalidInput, match=r"row 1 .*NaN or infinity") as caught:
            await path.infer(rows(SURE, NAN))
        assert caught.value.retry_after_s is None
        assert path.hosted.counts == OutcomeCounts(failed=2)


async def test_fail_asks_for_another_try_where_the_cloud_might_have_an_answer(tmp_path: Path) -> None:
    async with data_path(tmp_path, cascade=FAIL) as path:
        with pytest.raises(Unavailable, match="cloud_unreachable") as caught:
            await path.infer(rows(NAN))
        assert caught.value.retry_after_s


async def test_a_private_row_that_is_not_finite_stays_and_says_so(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        answer = await path.infer(rows(NAN, UNSURE), local_only=True, explain=True)
        assert list(answer.outputs["penstock_reason"]) == [b"not_finite", b"privacy"]
        assert not cloud.calls
