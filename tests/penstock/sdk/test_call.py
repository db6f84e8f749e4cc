from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import errors
from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, Unavailable
from penstock.sdk import call
from penstock.wire.addresses import located, parse_target
from penstock.wire.inference import InferResponse
from penstock.wire.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))


def wait_s(error: PenstockError, *, attempt: int = 1, left_s: float = 10.0, random: float = 0.5) -> float | None:
    return call.next_try_after_s(error, attempt=attempt, retries=2, left_s=left_s, random=random)


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("nobody there"),
        errors.InvalidInput("wrong"),
        errors.Internal("broke", retry_after_s=0.1),
        errors.DeadlineExceeded("late", retry_after_s=0.1),
        errors.QuotaExceeded("over", limit=1, reset_s=0.1),
    ],
    ids=lambda error: error.code,
)
def test_what_may_have_run_or_will_not_help_is_not_tried_again(error: PenstockError) -> None:
    assert wait_s(error) is None


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.QueueFull])
def test_a_refusal_with_a_hint_is_tried_again_until_tries_or_time_are_up(kind: type[PenstockError]) -> None:
    error = kind("busy", retry_after_s=1.0)
    assert wait_s(error, random=0.0) == 1.0
    assert wait_s(error, attempt=3) is None
    assert wait_s(error, left_s=0.9) is None


@given(hint_s=st.floats(0, 20), attempt=st.integers(1, 2), random=st.floats(0, 1, exclude_max=True))
def test_jitter_only_ever_lengthens_the_hint(hint_s: float, attempt: int, random: float) -> None:
    waited = wait_s(Unavailable("busy", retry_after_s=hint_s), attempt=attempt, left_s=1e9, random=random)
    assert waited is not None
    assert hint_s <= waited <= hint_s + 0.1


def test_an_expired_deadline_is_never_clamped_to_none() -> None:
    assert call.seconds_left(2.0, 1.5, 1.0) == 0.5
    for now in (2.0, 3.0):
        with pytest.raises(DeadlineExceeded, match="within 1 s"):
            call.seconds_left(2.0, now, 1.0)


@given(timeout_s=st.floats(1e-9, 1e6))
def test_the_timeout_on_the_wire_is_never_zero_and_never_longer(timeout_s: float) -> None:
    request = call.with_timeout(call.make_request("m", {}, priority=3), timeout_s)
    micros = request.parameters["timeout"]
    assert isinstance(micros, int)
    assert 1 <= micros <= max(1, timeout_s * 1e6)
    assert request.parameters["priority"] == 3


def test_arrays_of_a_chosen_dtype_are_kept_and_others_get_the_models() -> None:
    chosen = np.ones((1, 2), np.float16)
    assert call.arrays_of(chosen, (X,))["x"] is chosen
    assert call.arrays_of({"x": [[1, 2]], "other": chosen}, (X,))["other"] is chosen
    for values in ([[1, 2]], np.array([[1.0, 2.0]]), np.array([[1, 2]]), np.array([[1, 2]], dtype=object)):
        for inputs in (values, {"x": values}):
            x = call.arrays_of(inputs, (X,))["x"]
            assert x.dtype == np.float32
            assert x.tolist() == [[1.0, 2.0]]
    assert not call.needs_metadata({"x": chosen, "s": np.array([["text"]], dtype=object)})
    for asks in (chosen, {"x": [[1, 2]]}, {"x": np.ones((1, 2))}, {"x": np.ones(2, np.float32)}):
        assert call.needs_metadata(asks)


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        ([[1.5, 2]], "INT64", "row 0 holds 1.5, which INT64 cannot hold"),  # a list lost its halves without a word
        (np.array([[1, 2], [3, 300]]), "UINT8", "row 1 holds 300, which UINT8 cannot hold"),
        ([[2**53 + 1, 1.0]], "INT64", "row 0 holds 9007199254740992.0, which INT64 cannot hold"),  # an id, rounded
        (np.array([[1.0] * 1500 + ["7"]], object), "FP32", "holds text, but the model takes FP32"),
        (np.array([[1.0, 1e300]]), "FP32", r"row 0 holds 1e\+300"),
        ([["1.5"]], "FP32", "holds text, but the model takes FP32"),
        ([[1, 2], [3]], "FP32", "does not convert to an array"),
        (np.array([[1, "a"]], dtype=object), "FP32", "holds text"),
        (
            np.array([[1, object()]], dtype=object),
            "FP32",
            "an array of objects, and one of them is missing or no number",
        ),
        (np.array([[1, 2]]), "BYTES", r"holds int64, but the model takes text \(BYTES\)"),
    ],
)
def test_a_value_that_the_datatype_cannot_hold_is_refused_whatever_held_it(
    value: object, datatype: str, message: str
) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 2))
    with pytest.raises(InvalidInput, match=rf"inputs\.x: .*{message}"):
        call.arrays_of(value, (spec,))


@pytest.mark.parametrize(("number", "datatype"), [(2**53 + 1, "INT64"), (-(2**63), "INT64"), (2**64 - 1, "UINT64")])
def test_whole_numbers_arrive_as_they_are_whatever_held_them(number: int, datatype: str) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 2))
    for value in ([[number, 2]], np.array([[number, 2]], dtype=object)):  # an id in an object array was rounded
        assert call.arrays_of(value, (spec,))["x"].tolist() == [[number, 2]]


def test_a_result_names_the_likeliest_class_of_each_row() -> None:
    scores = np.array([[0.1, 0.9], [0.7, 0.3]])
    result = call.InferResult(model="m", outputs={"y": scores}, parameters={}, labels={"y": ("cat", "dog")})
    assert result.classes == ("dog", "cat")
    for labels in ({}, {"y": ("a", "b", "c")}, {"z": ("a", "b")}):
        assert call.InferResult(model="m", outputs={"y": scores}, parameters={}, labels=labels).classes == ()


def test_a_bare_array_for_several_inputs_is_refused_with_their_names() -> None:
    with pytest.raises(InvalidInput, match=r"2 \(x, x\); give a dict"):
        call.arrays_of(np.ones(1), (X, X))


def test_a_result_without_an_account_has_none() -> None:
    result = call.result_of(InferResponse(model="m", outputs={"y": np.ones((3, 1))}))
    assert (result.served_by, result.reason, result.certificate) == ("", "", "")
    assert result.confidence is None
    assert result.threshold is None
    assert result.rows == 3


def test_a_confidence_that_is_no_number_is_none() -> None:
    assert call.result_of(InferResponse(model="m", outputs={}, parameters={"confidence": "high"})).confidence is None
    assert call.result_of(InferResponse(model="m", outputs={}, parameters={"confidence": True})).confidence is None


def test_only_errors_of_reaching_somebody_are_given_the_target() -> None:
    target = parse_target("grpc://core:8001")
    assert located(Unavailable("refused"), target).message == "grpc://core:8001: refused"
    assert str(located(located(Unavailable("refused"), target), target)) == "grpc://core:8001: refused"
    assert located(InvalidInput("wrong"), target).message == "wrong"


def test_a_deadline_that_has_passed_is_told_in_words() -> None:
    with pytest.raises(DeadlineExceeded, match="no answer within 0.5 s"):
        call.seconds_left(1.0, 1.0, 0.5)
    with pytest.raises(DeadlineExceeded, match="the time for the call was over before it could be sent"):
        call.seconds_left(1.0, 1.000024, 1.0 - 1.000024)


def test_a_copy_of_an_error_is_the_same_error() -> None:
    error = errors.QuotaExceeded("over", limit=3, reset_s=1.0)
    copied = errors.copy_of(error)
    assert copied is not error
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
