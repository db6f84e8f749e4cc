"""One request from top to bottom, with a real model and a real cloud that is told to misbehave."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from edge_agent.policy.cascade import CascadeMode
from edge_agent.settings import CascadeSettings, EscalationSettings, LimitsSettings
from penstock.errors import DeadlineExceeded, InvalidInput, NotFound, PenstockError, QueueFull, Unavailable
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, Parameter
from penstock.wire.outcomes import OutcomeCounts
from penstock.wire.tensors import TensorSpec
from tests.edge_agent.datapath import (
    CERTIFICATE,
    CLOUD,
    DIGEST,
    FROM_CLOUD,
    INPUTS,
    MODEL,
    NAN,
    NOWHERE,
    OTHER_CLOUD,
    OUTPUTS,
    SURE,
    UNSURE,
    certificate,
    data_path,
    load_plan,
    rows,
    running_cloud,
    variant_spec,
)
from tests.factories import onnx_model
from tests.waiting import until


async def test_a_confident_row_is_answered_on_the_device_and_says_so(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        answer = await path.infer(rows(SURE))
        np.testing.assert_array_equal(answer.outputs["logits"], rows(SURE))
        assert answer.version == "v1"
        assert answer.parameters == {
            "served_by": "edge",
            "reason": "confident",
            "confidence": pytest.approx(0.99975, abs=1e-5),
            "threshold": 0.9,
            "certificate": CERTIFICATE,
            "artifact": DIGEST,
            "rows_escalated": 0,
        }
        assert not cloud.calls
        assert path.hosted.counts == OutcomeCounts(kept=1)


async def test_an_uncertain_row_is_answered_by_the_cloud(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        answer = await path.infer(rows(UNSURE))
        np.testing.assert_allclose(answer.outputs["logits"], rows(UNSURE) + FROM_CLOUD)
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("cloud", "escalated")
        assert answer.parameters["rows_escalated"] == 1
        assert path.hosted.counts == OutcomeCounts(escalated=1)


async def test_only_uncertain_rows_go_up_and_come_back_in_their_places(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        x = rows(SURE, UNSURE, SURE, [0.0, 0.2, 0.0])
        answer = await path.infer(x, explain=True)
        expected = x.copy()
        expected[[1, 3]] += FROM_CLOUD
        np.testing.assert_allclose(answer.outputs["logits"], expected)
        assert cloud.seen_rows == [2]
        assert (answer.parameters["served_by"], answer.parameters["rows_escalated"]) == ("mixed", 2)
        assert list(answer.outputs["penstock_served_by"]) == [b"edge", b"cloud", b"edge", b"cloud"]
        assert list(answer.outputs["penstock_reason"]) == [b"confident", b"escalated", b"confident", b"escalated"]
        assert answer.outputs["penstock_confidence"].dtype == np.float32
        assert path.hosted.counts == OutcomeCounts(kept=2, escalated=2)


async def test_a_tie_with_the_threshold_is_kept_as_it_was_counted_when_certified(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        tie = float((await path.infer(rows(UNSURE))).parameters["confidence"])
    for threshold, reason in ((tie, "confident"), (np.nextafter(tie, 1), "cloud_unreachable")):
        async with data_path(tmp_path, certified=certificate(threshold=float(threshold))) as path:
            assert (await path.infer(rows(UNSURE))).parameters["reason"] == reason


async def test_only_wanted_outputs_come_back(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        for wanted, expected in (
            (("logits",), ["logits"]),
            (("penstock_reason", "logits"), ["penstock_reason", "logits", "penstock_served_by", "penstock_confidence"]),
        ):
            request = InferRequest(model=MODEL, inputs={"x": rows(SURE)}, outputs=wanted)
            answer = await path.ask(request)
            assert list(answer.outputs) == expected
        request = InferRequest(model=MODEL, inputs={"x": rows(SURE)}, outputs=("nothing",))
        with pytest.raises(InvalidInput, match=r"no output named 'nothing'.*logits"):
            await path.ask(request)


# --- what others got wrong: KubeEdge Sedna's joint inference ------------------------------------------------------


async def test_an_output_with_nan_is_escalated_not_kept(tmp_path: Path) -> None:
    async with (
        running_cloud(answer=lambda x: np.nan_to_num(x) + 100) as cloud,
        data_path(tmp_path, cloud.target) as path,
    ):
        answer = await path.infer(rows(NAN, SURE))
        assert (answer.parameters["served_by"], answer.parameters["confidence"]) == ("mixed", 0.0)
        assert np.isfinite(answer.outputs["logits"]).all()
        assert path.hosted.counts == OutcomeCounts(kept=1, not_finite=1)


async def test_probabilities_of_exactly_zero_and_one_are_scored_without_a_logarithm_of_zero(tmp_path: Path) -> None:
    spec = variant_spec(score_kind="probabilities")
    plan = load_plan(tmp_path, certified=certificate(temperature=1.5), spec=spec)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, plan=plan) as path:
        assert (await path.infer(rows([1.0, 0.0, 0.0]))).parameters["reason"] == "confident"
        # no distribution: escalated however large its "probability" is
        assert (await path.infer(rows([7.0, 0.0, 0.0]))).parameters["reason"] == "escalated"


async def test_the_deadline_travels_and_a_slow_cloud_does_not_break_it(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        cloud.gate.clear()
        answer = await path.infer(rows(UNSURE), timeout_s=0.2)
        np.testing.assert_array_equal(answer.outputs["logits"], rows(UNSURE))
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("edge", "deadline")
        assert cloud.remaining_s[0] is not None
        assert cloud.remaining_s[0] <= 0.2
        assert 0 < cloud.calls[0].parameters["timeout"].int64_param <= 200_000
        assert path.hosted.counts == OutcomeCounts(unreachable=1)


async def test_a_cloud_slower_than_the_escalation_limit_counts_as_unreachable(tmp_path: Path) -> None:
    escalation = EscalationSettings(timeout_s=0.05)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, escalation=escalation) as path:
        cloud.gate.clear()
        answer = await path.infer(rows(UNSURE), timeout_s=30.0)
        assert answer.parameters["reason"] == "cloud_unreachable"


@pytest.mark.parametrize("mode", ["cascade", "escalate_all", "cloud_only"])
async def test_every_mode_answers_without_the_cloud(tmp_path: Path, mode: str) -> None:
    async with data_path(tmp_path, is_certified=mode != "escalate_all") as path:
        if mode == "cloud_only":
            path.hosted.note_audit(audited=100, harm=50)
        assert path.hosted.mode == mode
        answer = await path.infer(rows(UNSURE))
        np.testing.assert_array_equal(answer.outputs["logits"], rows(UNSURE))
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("edge", "cloud_unreachable")
        assert path.hosted.counts == OutcomeCounts(unreachable=1, audited=path.hosted.counts.audited,
                                                   audit_harm=path.hosted.counts.audit_harm)  # fmt: skip


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND,
               grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT]
)  # fmt: skip
async def test_a_failed_cloud_call_is_never_counted_as_collaboration(tmp_path: Path, status: grpc.StatusCode) -> None:
    async with running_cloud(failure=status) as cloud, data_path(tmp_path, cloud.target) as path:
        answer = await path.infer(rows(UNSURE))
        assert answer.parameters["reason"] == "cloud_unreachable"
        assert answer.parameters["rows_escalated"] == 0
        assert len(cloud.calls) == 1
        assert path.hosted.counts == OutcomeCounts(unreachable=1)


@pytest.mark.parametrize(
    "answer",
    [lambda x: x[:0], lambda x: np.zeros((len(x), 4), "f4"), lambda x: x.astype("f8")],
    ids=["no rows", "another shape", "another datatype"],
)
async def test_an_answer_of_the_cloud_that_is_none_is_not_used(tmp_path: Path, answer: Any) -> None:
    async with running_cloud(answer=answer) as cloud, data_path(tmp_path, cloud.target) as path:
        response = await path.infer(rows(UNSURE))
        np.testing.assert_array_equal(response.outputs["logits"], rows(UNSURE))
        assert response.parameters["reason"] == "cloud_unreachable"
        assert path.hosted.counts == OutcomeCounts(unreachable=1)


async def test_rows_travel_raw_and_name_the_certified_version(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        await path.infer(rows(UNSURE))
        call = cloud.calls[0]
        assert call.raw_input_contents == [rows(UNSURE).tobytes()]
        assert (call.model_name, call.model_version) == (MODEL, DIGEST)


async def test_any_other_server_can_be_asked_for_its_default_version(tmp_path: Path) -> None:
    escalation = EscalationSettings(model_version="")
    async with running_cloud(variant="") as cloud, data_path(tmp_path, cloud.target, escalation=escalation) as path:
        assert (await path.infer(rows(UNSURE))).parameters["reason"] == "escalated"
        assert cloud.calls[0].model_version == ""
        assert path.hosted.mode is CascadeMode.CASCADE


# --- modes --------------------------------------------------------------------------------------------------------


async def test_without_a_certificate_everything_is_escalated_and_says_so(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, is_certified=False) as path:
        answer = await path.infer(rows(SURE))
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("cloud", "uncertified")
        assert answer.parameters["certificate"] == ""
        assert "threshold" not in answer.parameters
        assert path.hosted.mode_why == "the artifact has no certificate"


@pytest.mark.parametrize("wrong", ["edge_digest", "cloud_digest", "preprocessing_digest"])
async def test_a_certificate_for_other_digests_is_not_used(tmp_path: Path, wrong: str) -> None:
    certified = certificate(**{wrong: OTHER_CLOUD})
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, certified=certified) as path:
        assert (await path.infer(rows(SURE))).parameters["reason"] == "uncertified"
        assert OTHER_CLOUD in path.hosted.mode_why


async def test_a_cloud_at_another_version_than_certified_ends_keeping_until_it_is_back(tmp_path: Path) -> None:
    async with running_cloud(variant=OTHER_CLOUD) as cloud, data_path(tmp_path, cloud.target) as path:
        first = await path.infer(rows(UNSURE))
        np.testing.assert_allclose(first.outputs["logits"], rows(UNSURE) + FROM_CLOUD)  # the answer is still used
        assert path.hosted.mode is CascadeMode.ESCALATE_ALL
        assert OTHER_CLOUD in path.hosted.mode_why
        assert (await path.infer(rows(SURE))).parameters["reason"] == "uncertified"
        cloud.variant = CLOUD
        await path.infer(rows(SURE))
        assert path.hosted.mode is CascadeMode.CASCADE
        assert (await path.infer(rows(SURE))).parameters["reason"] == "confident"


async def test_a_model_with_a_fixed_batch_is_answered_whole(tmp_path: Path) -> None:
    """Rows that may depend on each other are neither split, nor joined with those of others."""
    fixed = TensorSpec(name="x", datatype="FP32", shape=(2, 3))
    spec = variant_spec(inputs=(fixed,), outputs=(TensorSpec(name="logits", datatype="FP32", shape=(2, 3)),))
    plan = load_plan(tmp_path, certified=certificate(), spec=spec, batch=2)
    audited = CascadeSettings(audit_share=0.1)
    numbers = iter([0.05, 0.05, 0.5, 0.5])
    async with (
        running_cloud() as cloud,
        data_path(tmp_path, cloud.target, plan=plan, cascade=audited, random=lambda: next(numbers)) as path,
    ):
        assert not path.hosted.arrays.can_split
        for _ in range(2):
            assert (await path.infer(rows(SURE, SURE))).parameters["served_by"] == "edge"
        await path.dataplane.auditor.rest()
        assert cloud.seen_rows == [2, 2]
        answers = await asyncio.gather(*(path.infer(rows(SURE, UNSURE)) for _ in range(2)))
        assert {answer.parameters["served_by"] for answer in answers} == {"cloud"}
        assert cloud.seen_rows == [2, 2, 2, 2]
        assert path.hosted.counts == OutcomeCounts(kept=4, escalated=4, audited=4)


async def test_a_state_on_another_axis_goes_up_as_it_came_and_comes_back_so(tmp_path: Path) -> None:
    """The second dimension of the state is the batch: cut by rows it would be half a state."""
    state = TensorSpec(name="state", datatype="FP32", shape=(2, -1, 4))
    spec = variant_spec(
        inputs=(*INPUTS, state), outputs=(*OUTPUTS, TensorSpec(name="next", datatype="FP32", shape=state.shape))
    )
    nodes = [helper.make_node("Identity", ["x"], ["logits"]), helper.make_node("Neg", ["state"], ["next"])]
    shapes = {"inputs": {"x": ["n", 3], "state": [2, "n", 4]}, "outputs": {"logits": ["n", 3], "next": [2, "n", 4]}}
    plan = load_plan(tmp_path, certified=certificate(), spec=spec)
    onnx.save(onnx_model(nodes, **shapes), tmp_path / "state.onnx")
    plan = replace(plan, files=replace(plan.files, weights=tmp_path / "state.onnx"))
    before = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    audited = CascadeSettings(audit_share=0.1)
    async with (
        running_cloud(further={"next": before + 100}) as cloud,
        data_path(tmp_path, cloud.target, plan=plan, cascade=audited, random=lambda: 0.05) as path,
    ):
        assert not path.hosted.arrays.can_split
        kept, asked = [
            await path.ask(InferRequest(model=MODEL, inputs={"x": rows(row), "state": before}))
            for row in (SURE, UNSURE)
        ]
        await path.dataplane.auditor.rest()
        assert [answer.parameters["served_by"] for answer in (kept, asked)] == ["edge", "cloud"]
        np.testing.assert_array_equal(kept.outputs["next"], -before)
        np.testing.assert_array_equal(asked.outputs["next"], before + 100)
        assert [[list(one.shape) for one in call.inputs] for call in cloud.calls] == [[[1, 3], [2, 1, 4]]] * 2
        assert path.hosted.counts == OutcomeCounts(kept=1, escalated=1, audited=2)


async def test_a_size_that_the_variant_was_not_made_for_is_refused_with_those_it_was(tmp_path: Path) -> None:
    wide = TensorSpec(name="x", datatype="FP32", shape=(-1, -1), sizes=((), (3, 5)))
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, -1)),)
    plan = load_plan(tmp_path, certified=certificate(), spec=variant_spec(inputs=(wide,), outputs=outputs))
    nodes = [helper.make_node("Identity", ["x"], ["logits"])]
    onnx.save(onnx_model(nodes, inputs={"x": ["n", "w"]}, outputs={"logits": ["n", "w"]}), tmp_path / "wide.onnx")
    plan = replace(plan, files=replace(plan.files, weights=tmp_path / "wide.onnx"))
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, plan=plan) as path:
        with pytest.raises(InvalidInput, match=r"inputs\.x: dimension 1 is 4, but the model was made for 3 or 5"):
            await path.infer(np.ones((1, 4), np.float32))
        answer = await path.infer(np.array([[9.0, 0.0, 0.0, 0.0, 0.0]], np.float32))
        assert answer.parameters["served_by"] == "edge"
        assert not cloud.calls


# --- what may go up -----------------------------------------------------------------------------------------------


async def test_local_only_rows_never_leave_the_device(tmp_path: Path) -> None:
    audited = CascadeSettings(audit_share=1.0)
    async with (
        running_cloud() as cloud,
        data_path(tmp_path, cloud.target, cascade=audited, random=lambda: 0.0) as path,
    ):
        answer = await path.infer(rows(UNSURE, SURE), local_only=True)
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("edge", "privacy")
        await path.dataplane.auditor.rest()
        assert not cloud.calls
        assert path.hosted.counts == OutcomeCounts(kept=1, unreachable=1)
        with pytest.raises(InvalidInput, match="local_only"):
            await path.infer(rows(SURE), local_only="yes")


async def test_the_budget_goes_to_the_least_confident_rows(tmp_path: Path) -> None:
    escalation = EscalationSettings(rate_rows_per_s=0.001, burst_rows=1)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, escalation=escalation) as path:
        x = rows([0.5, 0.0, 0.0], SURE, UNSURE)
        answer = await path.infer(x, explain=True)
        assert list(answer.outputs["penstock_reason"]) == [b"budget", b"confident", b"escalated"]
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("mixed", "budget")
        assert (await path.infer(rows(UNSURE))).parameters["reason"] == "budget"
        assert cloud.seen_rows == [1]
        assert path.hosted.counts == OutcomeCounts(kept=1, escalated=1, unreachable=2)


async def test_a_round_trip_that_cannot_fit_the_deadline_is_not_tried(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        queue = path.escalator.queue_of(path.hosted)
        now = asyncio.get_running_loop().time()
        for _ in range(8):
            queue._round_trips = queue._round_trips.record(1.5, now)
        answer = await path.infer(rows(UNSURE), timeout_s=1.0)
        assert answer.parameters["reason"] == "deadline"
        assert not cloud.calls
        assert (await path.infer(rows(UNSURE), timeout_s=3.0)).parameters["reason"] == "escalated"


async def test_fail_refuses_instead_of_answering_flagged(tmp_path: Path) -> None:
    async with data_path(tmp_path, cascade=CascadeSettings(on_unreachable="fail")) as path:
        with pytest.raises(Unavailable, match=r"1 of 2 rows.*cloud_unreachable") as caught:
            await path.infer(rows(SURE, UNSURE))
        assert caught.value.retry_after_s
        assert (await path.infer(rows(SURE))).parameters["reason"] == "confident"
        assert path.hosted.counts == OutcomeCounts(kept=1, failed=2)


async def test_an_unreachable_cloud_costs_nothing_once_the_circuit_is_open_and_is_found_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with running_cloud(failure=grpc.StatusCode.UNAVAILABLE) as cloud, data_path(tmp_path, cloud.target) as path:
        for _ in range(3):
            await path.infer(rows(UNSURE))
        assert not path.escalator.is_reachable
        for _ in range(20):
            assert (await path.infer(rows(UNSURE))).parameters["reason"] == "cloud_unreachable"
        assert len(cloud.calls) == 3  # requests are not used to probe
        cloud.failure = None
        await until("the cloud is found", lambda: path.escalator.is_reachable)
        assert len(cloud.calls) == 4  # one inference of the agent's own
        assert cloud.seen_rows[-1] == 1
        assert (await path.infer(rows(UNSURE))).parameters["reason"] == "escalated"


# --- limits, deadlines, bad input ---------------------------------------------------------------------------------


async def test_bad_requests_are_refused_before_anything_runs(tmp_path: Path) -> None:
    async with data_path(tmp_path, limits=LimitsSettings(max_rows_per_request=4)) as path:
        for x, expected in (
            (np.zeros((1, 4), "f4"), r"shape is \[1, 4\]"),
            (np.zeros((1, 3), "f8"), "datatype is FP64"),
            (np.zeros((0, 3), "f4"), "no rows"),
            (np.zeros((5, 3), "f4"), "5 rows, the limit is 4"),
        ):
            with pytest.raises(InvalidInput, match=expected):
                await path.infer(x)
        with pytest.raises(NotFound, match="no model named 'other'.*toy"):
            await path.ask(InferRequest(model="other", inputs={"x": rows(SURE)}))
        with pytest.raises(NotFound, match="has no version 'v9' here.*v1"):
            await path.ask(InferRequest(model=MODEL, version="v9", inputs={"x": rows(SURE)}))
        for version in ("v1", DIGEST, DIGEST[:20]):
            await path.ask(InferRequest(model=MODEL, version=version, inputs={"x": rows(SURE)}))
        assert path.hosted.counts == OutcomeCounts(kept=3)


@pytest.mark.parametrize(("parameters", "timeout_s"), [({"timeout": 1}, None), ({}, -1.0), ({"timeout": 10**6}, 0.0)])
async def test_an_expired_deadline_is_refused_and_nothing_runs(
    tmp_path: Path, parameters: dict[str, Parameter], timeout_s: float | None
) -> None:
    async with data_path(tmp_path) as path:
        request = InferRequest(model=MODEL, inputs={"x": rows(SURE)}, parameters=parameters)
        arrived_at = asyncio.get_running_loop().time() - 0.5
        with pytest.raises(DeadlineExceeded):
            await path.ask(request, RequestContext(arrived_at=arrived_at).within(timeout_s))
        assert path.hosted.counts == OutcomeCounts()


async def test_rows_in_flight_are_bounded(tmp_path: Path) -> None:
    limits = LimitsSettings(max_queue_rows=4)
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, limits=limits) as path:
        cloud.gate.clear()
        waiting = asyncio.create_task(path.infer(rows(UNSURE, UNSURE, UNSURE)))
        await until("the call is under way", lambda: len(cloud.calls) == 1)
        with pytest.raises(QueueFull, match="3 rows are in flight and 2 more") as caught:
            await path.infer(rows(SURE, SURE))
        assert caught.value.retry_after_s
        await path.infer(rows(SURE))
        cloud.gate.set()
        await waiting
        assert path.dataplane.load.rows == 0


async def test_a_client_that_goes_away_takes_its_call_with_it(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        cloud.gate.clear()
        task = asyncio.create_task(path.infer(rows(UNSURE)))
        await until("the call is under way", lambda: len(cloud.calls) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until("the cloud sees it cancelled", lambda: cloud.cancelled == 1)
        assert path.hosted.counts == OutcomeCounts(failed=1)
        assert path.escalator.is_reachable  # a caller's impatience says nothing about the cloud
        assert path.hosted.in_flight == 0
        assert path.dataplane.load.rows == 0


# --- accounting ---------------------------------------------------------------------------------------------------

_KINDS = st.sampled_from([SURE, UNSURE, NAN])
_REQUEST = st.tuples(
    st.lists(_KINDS, min_size=1, max_size=5),
    st.sampled_from(["answer", "nan", "fail", "other version"]),
    st.booleans(),  # local_only
    st.booleans(),  # abandoned
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(_REQUEST, min_size=1, max_size=12),
    on_unreachable=st.sampled_from(["local_flagged", "fail"]),
    is_certified=st.booleans(),
    rate=st.sampled_from([0.0, 0.001]),
)
def test_every_row_that_entered_ends_in_exactly_one_bucket(
    tmp_path: Path, requests: list[Any], on_unreachable: Any, is_certified: bool, rate: float
) -> None:
    async def scenario() -> None:
        cascade = CascadeSettings(on_unreachable=on_unreachable, audit_share=0.5)
        escalation = EscalationSettings(rate_rows_per_s=rate, burst_rows=3, breaker_open_s=0.01)
        draws = iter(np.random.default_rng(0).random(1000).tolist())
        async with (
            running_cloud() as cloud,
            data_path(tmp_path, cloud.target, cascade=cascade, escalation=escalation, is_certified=is_certified,
                      random=lambda: next(draws)) as path,
        ):  # fmt: skip
            entered = 0
            answered = 0
            for group in range(0, len(requests), 3):
                tasks = []
                for kinds, behaviour, is_private, is_abandoned in requests[group : group + 3]:
                    cloud.answer = (lambda x: x * np.nan) if behaviour == "nan" else (lambda x: np.nan_to_num(x) + 100)
                    cloud.failure = grpc.StatusCode.UNAVAILABLE if behaviour == "fail" else None
                    cloud.variant = OTHER_CLOUD if behaviour == "other version" else CLOUD
                    task = asyncio.create_task(path.infer(rows(*kinds), local_only=is_private))
                    await asyncio.sleep(0)
                    if is_abandoned:
                        task.cancel()
                    tasks.append(task)
                    entered += len(kinds)
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(result, PenstockError | asyncio.CancelledError) or result.outputs
                    if not isinstance(result, BaseException):
                        answered += len(result.outputs["logits"])
            counts = path.hosted.counts
            assert counts.requests == entered
            assert entered - counts.failed == answered
            assert counts.audit_harm <= counts.audited <= entered
            assert path.dataplane.load.rows == 0
            drained = path.outcomes.drain()
            assert sum(interval.counts.requests for interval in drained) == entered

    asyncio.run(scenario())


async def test_nothing_is_left_when_the_cloud_was_never_there(tmp_path: Path) -> None:
    async with data_path(tmp_path, NOWHERE) as path:
        answers = await asyncio.gather(*(path.infer(rows(UNSURE, SURE)) for _ in range(30)))
        assert {answer.parameters["reason"] for answer in answers} == {"cloud_unreachable"}
        assert path.hosted.counts == OutcomeCounts(kept=30, unreachable=30)
