"""Messages that are read and written without protobuf say what protobuf says of them, or are left to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.rpc import codec, known_heads
from penstock.rpc.codec import DecodedRequest
from penstock.rpc.known_heads import KnownHeads
from penstock.rpc.pb import oip_pb2
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array
from tests.penstock.wires import arrays, parameters

CONTENTS = st.lists(arrays(text=False), min_size=1, max_size=3)


def message_of(tensors: list[Array], **more: Any) -> bytes:
    inputs = {f"x{number}": array for number, array in enumerate(tensors)}
    return codec.encode_request(InferRequest(**{"model": "m", "inputs": inputs, **more})).SerializeToString()


def by_protobuf(data: bytes) -> DecodedRequest | None:
    """None where protobuf or what follows it refuses."""
    try:
        return codec.decode_request(oip_pb2.ModelInferRequest.FromString(data))
    except (DecodeError, InvalidInput):
        return None


def learn(heads: KnownHeads, data: bytes) -> None:
    message = oip_pb2.ModelInferRequest.FromString(data)
    heads.learn(data, message, codec.decode_request(message))


def check_equal(one: DecodedRequest, other: DecodedRequest) -> None:
    ours, theirs = one.request, other.request
    assert (ours.model, ours.version, ours.id, ours.outputs) == (
        theirs.model,
        theirs.version,
        theirs.id,
        theirs.outputs,
    )
    assert (ours.parameters, one.raw) == (theirs.parameters, other.raw)
    assert list(ours.inputs) == list(theirs.inputs)
    for name, array in ours.inputs.items():
        assert (array.dtype, array.shape) == (theirs.inputs[name].dtype, theirs.inputs[name].shape)
        assert array.tobytes() == theirs.inputs[name].tobytes()
        assert not array.flags.writeable


@given(tensors=CONTENTS, given=parameters, version=st.sampled_from(["", "v1"]), data=st.data())
def test_whatever_is_taken_is_what_protobuf_reads(
    tensors: list[Array], given: dict[str, Any], version: str, data: st.DataObject
) -> None:
    heads = KnownHeads()
    body = message_of(tensors, parameters=given, version=version)
    learn(heads, body)
    mutated = bytearray(body)
    for _ in range(data.draw(st.integers(0, 4))):
        kind = data.draw(st.sampled_from(["byte", "byte", "byte", "insert", "delete"]))
        at = data.draw(st.integers(0, len(mutated) - 1))
        if kind == "byte":
            mutated[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            mutated.insert(at, data.draw(st.integers(0, 255)))
        elif len(mutated) > 1:
            del mutated[at]
    sent = bytes(mutated)
    known = heads.find(sent)
    if known is not None:
        expected = by_protobuf(sent)
        assert expected is not None, "taken, though protobuf refuses it"
        check_equal(known.decode(sent), expected)


@given(tensors=CONTENTS, seed=st.integers(0, 2**32 - 1))
def test_other_numbers_under_a_known_head_are_taken(tensors: list[Array], seed: int) -> None:
    tensors = [array for array in tensors if array.dtype.kind not in "bO" and array.nbytes]
    if not tensors:
        return
    heads = KnownHeads()
    learn(heads, message_of(tensors))
    rng = np.random.default_rng(seed)
    others = [np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(array.shape) for array in tensors]
    sent = message_of(others)
    known, expected = heads.find(sent), by_protobuf(sent)
    assert known is not None
    assert expected is not None
    check_equal(known.decode(sent), expected)


@pytest.mark.parametrize(
    "given",
    [
        {"id": "r1"},
        {"inputs": {"x": np.array([True, False])}},
        {"inputs": {"x": np.array([b"text"], object)}},
        {"inputs": {"x": np.zeros((0, 4), np.float32)}},
        {"model": "m" * known_heads.MAX_HEAD_BYTES},
    ],
    ids=["an id", "bools", "texts", "nothing", "a long name"],
)
def test_what_its_bytes_could_make_wrong_and_what_never_comes_again_is_protobufs(given: dict[str, Any]) -> None:
    heads = KnownHeads()
    body = message_of([np.ones((1, 4), np.float32)], **given)
    learn(heads, body)
    assert heads.find(body) is None


def test_tensors_in_shared_memory_or_in_two_places_and_classes_are_protobufs() -> None:
    heads, message = KnownHeads(), oip_pb2.ModelInferRequest.FromString(message_of([np.ones(3, np.float32)]))
    decoded = codec.decode_request(message)
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    heads.learn(message.SerializeToString(), message, decoded)
    message.inputs[0].ClearField("parameters")
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    heads.learn(message.SerializeToString(), message, decoded)
    assert heads.find(message.SerializeToString()) is None
    message.ClearField("outputs")
    body = message.SerializeToString()
    turned = body[-14:] + body[:-14]  # the tensor's bytes before everything else: right to protobuf
    assert by_protobuf(turned) is not None
    learn(heads, turned)
    assert heads.find(turned) is None


def test_heads_are_bounded_and_clients_whose_heads_never_come_again_are_given_up() -> None:
    heads = KnownHeads()
    for number in range(3 * known_heads.MAX_HEADS):
        learn(heads, message_of([np.ones(3, np.float32)], model=f"m{number}"))
    assert len(heads._requests) <= known_heads.MAX_HEADS
    assert all(len(sizes) <= 4 for sizes in heads._sizes.values())
    body = message_of([np.ones(3, np.float32)], model="another")
    for _ in range(16):
        learn(heads, body)
    assert heads.find(body) is not None


@given(
    tensors=st.lists(arrays(text=False), max_size=3),
    given=parameters,
    id_=st.sampled_from(["", "r1", "ä" * 100]),
    raw=st.booleans(),
    repeats=st.integers(1, 2),
)
def test_answers_say_what_protobuf_would_have_said(
    tensors: list[Array], given: dict[str, Any], id_: str, raw: bool, repeats: int
) -> None:
    heads = KnownHeads()
    outputs = {f"y{number}": array for number, array in enumerate(tensors)}
    asked = DecodedRequest(InferRequest(model="m", id=id_, inputs={}), raw)
    response = InferResponse(model="m", version="v1", outputs=outputs, parameters=given)
    for _ in range(repeats):
        answer = oip_pb2.ModelInferResponse.FromString(heads.encode(response, asked))
        assert answer == codec.encode_response(response, asked)
    moved = InferResponse(model="m", version="v1", outputs=outputs, parameters={"variant": "another"})
    answer = oip_pb2.ModelInferResponse.FromString(heads.encode(moved, asked))
    assert answer == codec.encode_response(moved, asked)
