"""KServe's first protocol: rows and columns to arrays and back, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidInput
from penstock.rest.predict import PredictCall, decode_predict, encode_prediction
from penstock.wire.inference import InferResponse
from penstock.wire.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
AGE = TensorSpec(name="age", datatype="INT8", shape=(-1,))
TEXT = TensorSpec(name="text", datatype="BYTES", shape=(-1,))


def decoded(document: Any, *specs: TensorSpec) -> PredictCall:
    return decode_predict(json.dumps(document).encode(), specs, model="m")


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [[1, 2], [3, 4.5]], "signature_name": "serving_default"},
        {"instances": [{"x": [1, 2]}, {"x": [3, 4.5]}]},
        {"inputs": [[1, 2], [3, 4.5]]},
        {"inputs": {"x": [[1, 2], [3, 4.5]]}},
    ],
)
def test_rows_and_columns_with_and_without_a_name_are_one_array(document: Any) -> None:
    call = decoded(document, X)
    array = call.request.inputs["x"]
    assert (array.dtype, array.tolist()) == (np.float32, [[1.0, 2.0], [3.0, 4.5]])
    assert call.by_rows == ("instances" in document)


def test_several_inputs_come_by_name() -> None:
    for document in (
        {"instances": [{"x": [1, 2], "age": 7}, {"x": [3, 4], "age": 9}]},
        {"inputs": {"x": [[1, 2], [3, 4]], "age": [7, 9]}},
    ):
        inputs = decoded(document, X, AGE).request.inputs
        assert (inputs["x"].tolist(), inputs["age"].tolist()) == ([[1, 2], [3, 4]], [7, 9])


def test_texts_are_texts_and_other_bytes_are_base64() -> None:
    array = decoded({"instances": ["h\u00e9", {"b64": "/w=="}]}, TEXT).request.inputs["text"]
    assert array.tolist() == ["h\u00e9".encode(), b"\xff"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "expected an object"), ({}, "expected an object"), ({"instances": [], "inputs": []}, "expected an object"),
        ({"instances": []}, "at least one"), ({"instances": 3}, "at least one"),
        ({"instances": [[1, 2], [3]]}, "different lengths"), ({"instances": [[1, 2], 3]}, "different lengths"),
        ({"instances": [[1, "a"]]}, "not all values are FP32"), ({"instances": [[1, None]]}, "not all values are FP32"),
        ({"instances": [[1, 1e300]]}, "out of range"), ({"instances": [[1, [2]]]}, "lists beside values"),
        ({"instances": [{"y": [1, 2]}]}, "has 'y'; the model takes x"), ({"inputs": {}}, "has nothing"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_told_why(document: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        decoded(document, X)


@pytest.mark.parametrize(
    ("value", "says"),
    [(5, "not all values are text"), ({"b64": "?"}, "no text"), ({"b64": "/w==", "c": 1}, "has 'b64', 'c'|no text")],
)
def test_what_is_no_text_is_refused(value: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        decoded({"instances": [value]}, TEXT)


def test_a_value_alone_does_not_do_for_two_inputs() -> None:
    with pytest.raises(InvalidInput, match="by name"):
        decoded({"instances": [[1, 2]]}, X, AGE)


def answered(by_rows: bool, **outputs: Any) -> Any:
    call = PredictCall(decoded({"inputs": [[1, 2]]}, X).request, by_rows)
    response = InferResponse(model="m", outputs={name: np.array(value) for name, value in outputs.items()})
    return json.loads(encode_prediction(response, call))


def test_an_answer_has_the_form_of_its_request() -> None:
    assert answered(True, y=[[1.5], [2.5]]) == {"predictions": [[1.5], [2.5]]}
    assert answered(True, y=[1, 2], z=[True, False]) == {"predictions": [{"y": 1, "z": True}, {"y": 2, "z": False}]}
    assert answered(False, y=[1.5, np.nan]) == {"outputs": [1.5, None]}
    assert answered(False, y=[1, 2], z=[[b"a"], [b"\xff"]]) == {
        "outputs": {"y": [1, 2], "z": [["a"], [{"b64": "/w=="}]]}
    }


def test_rows_cannot_be_told_where_an_output_has_none() -> None:
    for outputs in ({"y": [1, 2], "total": 3}, {"y": [1, 2], "z": [1, 2, 3]}):
        with pytest.raises(InvalidInput, match='ask with "inputs"'):
            answered(True, **outputs)
    assert answered(False, y=[1, 2], total=3) == {"outputs": {"y": [1, 2], "total": 3}}
