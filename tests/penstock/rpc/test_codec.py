from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

from penstock.errors import Internal, InvalidInput
from penstock.rpc import codec
from penstock.rpc.pb import oip_pb2
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array, datatype_of
from tests.penstock.wire_forms import METADATA
from tests.penstock.wires import all_same, arrays, parameters, same


@given(tensors=st.lists(arrays(text=False), max_size=3, min_size=1), given=parameters)
def test_request_round_trip(tensors: list[Array], given: dict[str, Any]) -> None:
    inputs = {f"in{index}": array for index, array in enumerate(tensors)}
    request = InferRequest(model="m", version="v", id="7", inputs=inputs, outputs=("a", "b"), parameters=given)
    sent = codec.encode_request(request).SerializeToString()
    decoded = codec.decode_request(oip_pb2.ModelInferRequest.FromString(sent))
    assert decoded.raw
    assert all_same(decoded.request.inputs, inputs)
    assert decoded.request.parameters == given
    assert (decoded.request.model, decoded.request.version, decoded.request.id) == ("m", "v", "7")
    assert decoded.request.outputs == ("a", "b")


@given(tensors=st.lists(arrays(text=False), max_size=3), raw=st.booleans(), given=parameters)
def test_response_round_trip(tensors: list[Array], raw: bool, given: dict[str, Any]) -> None:
    outputs = {f"out{index}": array for index, array in enumerate(tensors)}
    response = InferResponse(model="m", version="v1", id="7", outputs=outputs, parameters=given)
    message = codec.encode_response(response, codec.DecodedRequest(InferRequest(model="m", inputs={}), raw))
    if any(array.dtype == np.float16 for array in tensors) or raw:
        assert len(message.raw_output_contents) == len(tensors)
    else:
        assert not message.raw_output_contents
    decoded = codec.decode_response(oip_pb2.ModelInferResponse.FromString(message.SerializeToString()))
    for name, array in outputs.items():
        # protobuf carries the value of a float, not which of the NaNs it is
        assert same(decoded.outputs[name], array) or np.array_equal(decoded.outputs[name], array, equal_nan=True)
    assert (decoded.model, decoded.version, decoded.id, decoded.parameters) == ("m", "v1", "7", given)


@given(array=arrays(text=False))
def test_reads_what_tritonclient_writes(array: Array) -> None:
    tensor = triton.InferInput("x", list(array.shape), datatype_of(array))
    tensor.set_data_from_numpy(array)
    wanted = [triton.InferRequestedOutput("y")]
    sent = _get_inference_request("m", [tensor], "v", "7", wanted, 0, False, False, 1, 1000, {"explain": True})
    decoded = codec.decode_request(oip_pb2.ModelInferRequest.FromString(sent.SerializeToString()))
    if array.size:
        assert same(decoded.request.inputs["x"], array)
    assert decoded.request.outputs == ("y",)
    assert decoded.request.parameters == {"priority": 1, "timeout": 1000, "explain": True}


@given(array=arrays(text=False))
def test_tritonclient_reads_what_we_write(array: Array) -> None:
    wanted = codec.DecodedRequest(InferRequest(model="m", inputs={}), raw=True)  # as tritonclient always asks
    message = codec.encode_response(InferResponse(model="m", outputs={"y": array}), wanted)
    read = triton.InferResult(service_pb2.ModelInferResponse.FromString(message.SerializeToString())).as_numpy("y")
    assert read.shape == array.shape
    assert read.tolist() == array.tolist() or np.array_equal(read, array, equal_nan=True)


def typed(datatype: str, shape: list[int], **contents: Any) -> oip_pb2.ModelInferRequest:
    message = oip_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=datatype, shape=shape, contents=oip_pb2.InferTensorContents(**contents))
    return message


def raw(datatype: str, shape: list[int], *entries: bytes) -> oip_pb2.ModelInferRequest:
    message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=entries)
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    return message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (typed("BOOL", [2], bool_contents=[True, False]), np.array([True, False])),
        (typed("INT8", [1, 2], int_contents=[-128, 127]), np.array([[-128, 127]], np.int8)),
        (typed("UINT16", [1], uint_contents=[65535]), np.array([65535], np.uint16)),
        (typed("INT64", [1], int64_contents=[-(2**63)]), np.array([-(2**63)], np.int64)),
        (typed("UINT64", [1], uint64_contents=[2**64 - 1]), np.array([2**64 - 1], np.uint64)),
        (typed("FP32", [1, 1], fp32_contents=[0.5]), np.array([[0.5]], np.float32)),
        (typed("FP64", [1], fp64_contents=[1e300]), np.array([1e300])),
        (typed("BYTES", [2], bytes_contents=[b"a", b""]), np.array([b"a", b""], dtype=object)),
    ],
)
def test_typed_contents_are_read_and_answered_typed(message: oip_pb2.ModelInferRequest, expected: Array) -> None:
    decoded = codec.decode_request(message)
    assert not decoded.raw
    assert same(decoded.request.inputs["x"], expected)
    answer = codec.encode_response(InferResponse(model="m", outputs={"y": expected}), decoded)
    assert not answer.raw_output_contents
    assert same(codec.decode_response(answer).outputs["y"], expected)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (oip_pb2.ModelInferRequest(model_name="m"), "inputs: the request has none"),
        (raw("FP32", [2], b"\0" * 4), r"inputs\.x: 4 raw bytes, .* needs 8"),
        (raw("FP32", [1], b"\0" * 4, b""), "2 entries for 1 inputs"),
        (raw("FP32", [-1], b"\0" * 4), "negative dimension"),
        (raw("FP32", [2**62, 2**62, 0], b""), "cannot have shape"),
        (raw("BF16", [1], b"\0\0"), "unknown datatype 'BF16'"),
        (raw("BYTES", [1], b"\5\0\0\0ab"), "end inside element 0"),
        (raw("BYTES", [2**40], b"\0\0\0\0"), "cannot hold"),
        (typed("FP16", [1], fp32_contents=[1.0]), "FP16 travels only in raw contents"),
        (typed("FP32", [1], fp64_contents=[1.0]), r"FP32 values belong in contents\.fp32_contents"),
        (typed("INT8", [1], int_contents=[128]), "out of range for INT8"),
        (typed("UINT8", [1], uint_contents=[256]), "out of range for UINT8"),
        (typed("INT32", [3], int_contents=[1]), r"cannot have shape \[3\]"),
    ],
)
def test_malformed_messages_are_refused_with_what_is_wrong(message: oip_pb2.ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        codec.decode_request(message)


def test_a_name_twice_a_parameter_without_value_and_shared_memory_are_refused() -> None:
    message = raw("FP32", [1], b"\0" * 4, b"\0" * 4)
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    with pytest.raises(InvalidInput, match="given twice"):
        codec.decode_request(message)
    message = raw("FP32", [1], b"\0" * 4)
    message.parameters["empty"].SetInParent()
    with pytest.raises(InvalidInput, match=r"parameters\.empty: has no value"):
        codec.decode_request(message)
    message = typed("FP32", [0])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInput, match="shared memory is not served"):
        codec.decode_request(message)
    message = typed("FP32", [3])  # as Triton's client sends it: a shape, a region and no values
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInput, match="shared memory is not served"):
        codec.decode_request(message)
    message = raw("FP32", [1], b"\0" * 4)
    output = message.outputs.add(name="y")
    output.parameters["classification"].int64_param = 2
    assert codec.decode_request(message).classes == {"y": 2}
    output.parameters["classification"].int64_param = -1
    with pytest.raises(InvalidInput, match="number of classes"):
        codec.decode_request(message)
    del output.parameters["classification"]
    output.parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInput, match="shared memory is not served"):
        codec.decode_request(message)


def test_both_typed_and_raw_contents_are_refused() -> None:
    message = typed("FP32", [1], fp32_contents=[1.0])
    message.raw_input_contents.append(b"\0" * 4)
    with pytest.raises(InvalidInput, match="both contents and raw contents"):
        codec.decode_request(message)


def test_a_parameter_that_no_wire_type_holds_is_refused() -> None:
    request = InferRequest(model="m", inputs={"x": np.ones(1)}, parameters={"n": 2**64})
    with pytest.raises(InvalidInput, match=r"parameters\.n: cannot travel"):
        codec.encode_request(request)


_VALID = codec.encode_request(
    InferRequest(
        model="m",
        inputs={"x": np.ones((2, 3), np.float32), "s": np.array([b"ab", b""], dtype=object)},
        outputs=("y",),
        parameters={"timeout": 5, "note": "hi"},
    )
).SerializeToString()


@settings(max_examples=500)
@given(data=st.data())
def test_mutated_messages_decode_or_raise_invalid_input(data: st.DataObject) -> None:
    body = bytearray(_VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = oip_pb2.ModelInferRequest.FromString(bytes(body))
    except DecodeError:
        return  # gRPC answers this by itself
    try:
        decoded = codec.decode_request(message)
    except InvalidInput:
        return
    assert decoded.request.inputs


def test_metadata_round_trip() -> None:
    assert codec.decode_metadata(codec.encode_metadata(METADATA)) == METADATA


def test_a_server_that_answers_nonsense_is_its_own_fault() -> None:
    message = oip_pb2.ModelInferResponse(model_name="m", raw_output_contents=[b"\0"])
    message.outputs.add(name="y", datatype="FP32", shape=[1])
    with pytest.raises(Internal, match="the server's answer"):
        codec.decode_response(message)
