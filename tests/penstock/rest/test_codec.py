from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http._utils import _get_inference_request

from penstock.errors import Internal, InvalidInput
from penstock.rest import codec, metadata
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array, datatype_of
from tests.penstock.wire_forms import METADATA
from tests.penstock.wires import all_same, arrays, parameters, same


def decode(encoded: codec.EncodedBody, model: str = "m") -> codec.DecodedRequest:
    return codec.decode_request(encoded.body, header_length=encoded.header_length, model=model, version="")


def document(**changes: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    return json.dumps({"inputs": [{**tensor, **changes}]}).encode()


@given(tensors=st.lists(arrays(text=False), max_size=3, min_size=1), given=parameters, wanted=st.booleans())
def test_binary_request_round_trip(tensors: list[Array], given: dict[str, Any], wanted: bool) -> None:
    inputs = {f"in{index}": array for index, array in enumerate(tensors)}
    outputs = ("a", "b") if wanted else ()
    request = InferRequest(model="m", id="7", inputs=inputs, outputs=outputs, parameters=given)
    decoded = decode(codec.encode_request(request))
    assert decoded.binary_outputs is True
    assert all_same(decoded.request.inputs, inputs)
    assert (decoded.request.id, decoded.request.outputs, decoded.request.parameters) == ("7", outputs, given)


@given(array=arrays(text=True))
def test_json_request_round_trip(array: Array) -> None:
    encoded = codec.encode_request(InferRequest(model="m", inputs={"x": array}), binary=False)
    decoded = decode(encoded)
    assert encoded.header_length is None
    assert decoded.binary_outputs is False
    assert same(decoded.request.inputs["x"], array)


@given(tensors=st.lists(arrays(text=True), max_size=3), binary=st.booleans(), given=parameters)
def test_response_round_trip(tensors: list[Array], binary: bool, given: dict[str, Any]) -> None:
    outputs = {f"out{index}": array for index, array in enumerate(tensors)}
    response = InferResponse(model="m", version="v1", id="7", outputs=outputs, parameters=given)
    encoded = codec.encode_response(response, codec.DecodedRequest(InferRequest(model="m", inputs={}), binary))
    decoded = codec.decode_response(encoded.body, header_length=encoded.header_length)
    assert all_same(decoded.outputs, outputs)
    assert (decoded.model, decoded.version, decoded.id, decoded.parameters) == ("m", "v1", "7", given)


@given(array=arrays(text=True), binary=st.booleans())
def test_reads_what_tritonclient_writes(array: Array, binary: bool) -> None:
    if array.dtype == np.float16 and not binary:
        binary = True  # tritonclient writes it, the protocol does not name it
    tensor = triton.InferInput("x", list(array.shape), datatype_of(array))
    tensor.set_data_from_numpy(array, binary_data=binary)
    wanted = [triton.InferRequestedOutput("y", binary_data=True), triton.InferRequestedOutput("z", binary_data=False)]
    body, header_length = _get_inference_request([tensor], "7", wanted, 0, False, False, 1, 1000, {"explain": True})
    decoded = codec.decode_request(body, header_length=header_length, model="m", version="")
    assert same(decoded.request.inputs["x"], array)
    assert decoded.binary_outputs == frozenset({"y"})
    assert decoded.request.outputs == ("y", "z")
    assert decoded.request.parameters == {"priority": 1, "timeout": 1000, "explain": True}


@given(array=arrays(text=True), binary=st.booleans())
def test_tritonclient_reads_what_we_write(array: Array, binary: bool) -> None:
    wanted = codec.DecodedRequest(InferRequest(model="m", inputs={}), binary)
    encoded = codec.encode_response(InferResponse(model="m", outputs={"y": array}), wanted)
    result = triton.InferResult.from_response_body(encoded.body, header_length=encoded.header_length)
    read = result.as_numpy("y")
    if array.dtype.kind == "O" and not binary:
        read = np.array([text.encode() for text in read.ravel()], dtype=object).reshape(read.shape)
    assert same(read, array)


@settings(max_examples=300)
@given(body=st.binary(max_size=200), header_length=st.none() | st.integers(-5, 250))
def test_random_bytes_raise_only_invalid_input(body: bytes, header_length: int | None) -> None:
    with pytest.raises(InvalidInput):
        codec.decode_request(body, header_length=header_length, model="m", version="")


_VALID = codec.encode_request(
    InferRequest(
        model="m",
        id="1",
        inputs={"x": np.ones((2, 3), np.float32), "s": np.array([b"ab", b""], dtype=object), "b": np.array([True])},
        outputs=("y",),
        parameters={"timeout": 5, "note": "hi"},
    )
)
_VALID_JSON = codec.encode_request(InferRequest(model="m", inputs={"x": np.ones((2, 3), np.int8)}), binary=False)


@settings(max_examples=500)
@given(data=st.data(), valid=st.sampled_from([_VALID, _VALID_JSON]))
def test_mutated_bodies_decode_or_raise_invalid_input(data: st.DataObject, valid: codec.EncodedBody) -> None:
    body = bytearray(valid.body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            body[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(body) > 2:
            del body[at : at + data.draw(st.integers(1, 8))]
        else:
            body[at:at] = data.draw(st.sampled_from([b"[", b"-", b"9" * 25, b"null", b"\xff", b'"', b"{}", b"1e999"]))
        if not body:
            return
    length = None if valid.header_length is None else valid.header_length + data.draw(st.integers(-2, 2))
    try:
        decoded = codec.decode_request(bytes(body), header_length=length, model="m", version="")
    except InvalidInput:
        return
    assert decoded.request.inputs


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "body: not a valid request"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', "inputs: the request has none"),
        (b'{"inputs": [' + b"[" * 100_000, "body: not"),
        (document(datatype="FP8"), r"inputs\.x: unknown datatype 'FP8'; known: BOOL"),
        (document(shape=[1, 3]), r"inputs\.x: cannot have shape \[1, 3\]"),
        (document(shape=[-1, 2]), ">= 0"),
        (document(shape=[1, 2**40]), "<= 2147483647"),
        (document(shape=[0] * 70, data=[]), "cannot have shape"),
        (document(shape=[0, 2**31 - 1, 2**31 - 1, 2**31 - 1], data=[]), "cannot have shape"),
        (document(data=["1", "2"]), r"inputs\.x\.data: not all values are FP32"),
        (document(data=[None, 1]), r"Expected `float`, got `null`"),
        (document(data=[True, False]), "Expected `float`, got `bool`"),
        (document(data=None), "not a list of FP32"),
        (document(data=[[1, 2], [3]]), "not a list of FP32"),
        (document(data=[1e300, 0.0]), "out of range for FP32"),
        (document(datatype="INT8", data=[300, 1]), "<= 127"),
        (document(datatype="UINT64", data=[2**64, 1]), "out of range|Expected `int`"),
        (document(datatype="UINT8", data=[-1, 1]), ">= 0"),
        (document(datatype="BOOL", data=[2, 1]), "not all values are BOOL|not a list of BOOL"),
        (document(datatype="BYTES", data=[1, 2]), "not all values are BYTES"),
        (document(parameters={"binary_data_size": 8}), "Inference-Header-Content-Length"),
        (document(parameters={"binary_data_size": "8"}), "Expected `int | null`"),
        (document(parameters={"shared_memory_region": "r"}), "shared memory is not served"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}', "neither data nor"),
        (b'{"parameters": {"timeout": {}}, "inputs": []}', "timeout|Expected"),
        (b'{"parameters": {"n": 99999999999999999999}, "inputs": []}', "body: not a valid request"),
    ],
)
def test_malformed_json_is_refused_with_what_is_wrong(body: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        codec.decode_request(body, header_length=None, model="m", version="")


def test_the_same_name_twice_is_refused() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    with pytest.raises(InvalidInput, match="given twice"):
        codec.decode_request(json.dumps({"inputs": [tensor, tensor]}).encode(), model="m")
    outputs = [{"name": "y"}, {"name": "y"}]
    with pytest.raises(InvalidInput, match="given twice"):
        codec.decode_request(json.dumps({"inputs": [tensor], "outputs": outputs}).encode(), model="m")


@pytest.mark.parametrize("cut", [1, 4, 16])
def test_truncated_raw_bytes_are_refused(cut: int) -> None:
    encoded = codec.encode_request(InferRequest(model="m", inputs={"x": np.ones((1, 4), np.float32)}))
    with pytest.raises(InvalidInput, match=r"inputs\.x: binary_data_size is 16, but only \d+ bytes are left"):
        codec.decode_request(encoded.body[:-cut], header_length=encoded.header_length, model="m")


def test_left_over_raw_bytes_are_refused() -> None:
    encoded = codec.encode_request(InferRequest(model="m", inputs={"x": np.ones((1, 4), np.float32)}))
    with pytest.raises(InvalidInput, match="3 bytes after the last tensor"):
        codec.decode_request(encoded.body + b"abc", header_length=encoded.header_length, model="m")


def test_raw_size_that_does_not_fit_the_shape_is_refused() -> None:
    header = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":4}}]}'
    with pytest.raises(InvalidInput, match="4 raw bytes, but datatype FP32 with shape \\[2\\] needs 8"):
        codec.decode_request(header + b"\0" * 4, header_length=len(header), model="m")


def test_bool_bytes_other_than_0_and_1_are_refused() -> None:
    header = b'{"inputs":[{"name":"x","datatype":"BOOL","shape":[1],"parameters":{"binary_data_size":1}}]}'
    with pytest.raises(InvalidInput, match="BOOL byte must be 0 or 1"):
        codec.decode_request(header + b"\2", header_length=len(header), model="m")


def test_nested_lists_are_row_major() -> None:
    body = document(datatype="INT32", shape=[2, 2], data=[[1, 2], [3, 4]])
    decoded = codec.decode_request(body, model="m")
    assert decoded.request.inputs["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("padding", range(8))
def test_arrays_are_aligned_whatever_the_header_length(padding: int) -> None:
    header = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"parameters":{"binary_data_size":8}}]}'
    header += b" " * padding
    decoded = codec.decode_request(header + np.array([1.5]).tobytes(), header_length=len(header), model="m")
    assert decoded.request.inputs["x"].flags.aligned
    assert decoded.request.inputs["x"].tolist() == [1.5]


def test_our_own_binary_form_is_read_without_a_copy() -> None:
    encoded = codec.encode_request(InferRequest(model="model", inputs={"x": np.ones((1, 4))}))
    decoded = decode(encoded)
    assert np.shares_memory(decoded.request.inputs["x"], np.frombuffer(encoded.body, np.uint8))


def test_nan_and_infinity_become_null_in_json_and_nan_when_read() -> None:
    response = InferResponse(model="m", outputs={"y": np.array([np.nan, np.inf, 1], np.float32)})
    encoded = codec.encode_response(response, codec.DecodedRequest(InferRequest(model="m", inputs={}), False))
    assert json.loads(encoded.body)["outputs"][0]["data"] == [None, None, 1.0]
    read = codec.decode_response(encoded.body).outputs["y"]
    assert np.isnan(read[:2]).all()
    assert read[2] == 1


def test_bytes_that_json_cannot_carry_ask_for_binary() -> None:
    response = InferResponse(model="m", outputs={"y": np.array([b"\xff"], dtype=object)})
    with pytest.raises(InvalidInput, match="ask for binary data"):
        codec.encode_response(response, codec.DecodedRequest(InferRequest(model="m", inputs={}), False))


def test_outputs_are_raw_where_asked_raw() -> None:
    request = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}],
        "outputs": [{"name": "raw"}, {"name": "text", "parameters": {"binary_data": False}}],
        "parameters": {"binary_data_output": True},
    }
    decoded = codec.decode_request(json.dumps(request).encode(), model="m")
    assert decoded.request.parameters == {}
    outputs = {"raw": np.array([1.0], np.float32), "text": np.array([2.0], np.float32)}
    encoded = codec.encode_response(InferResponse(model="m", outputs=outputs), decoded)
    assert encoded.header_length is not None
    sent = json.loads(encoded.body[: encoded.header_length])["outputs"]
    assert sent[0]["parameters"] == {"binary_data_size": 4}
    assert sent[1]["data"] == [2.0]
    assert encoded.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "parameters", [{"shared_memory_region": "r"}, {"shared_memory_region": "", "classification": 2}]
)
def test_output_extensions_that_are_not_served_are_refused(parameters: dict[str, Any]) -> None:
    request = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}],
        "outputs": [{"name": "y", "parameters": parameters}],
    }
    with pytest.raises(InvalidInput, match="not served"):
        codec.decode_request(json.dumps(request).encode(), model="m")


def test_metadata_round_trip() -> None:
    assert metadata.decode_metadata(metadata.encode_metadata(METADATA)) == METADATA


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"<html>", b'{"model_name": "m", "outputs": [{"name": "y"}]}', b"[" * 9999]
)
def test_a_server_that_answers_nonsense_is_its_own_fault(body: bytes) -> None:
    with pytest.raises(Internal, match="the server's answer"):
        codec.decode_response(body)
    with pytest.raises(Internal, match="the server's answer"):
        metadata.decode_metadata(body.replace(b"model_name", b"x"))
