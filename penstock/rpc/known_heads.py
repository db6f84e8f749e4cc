"""Plain inference over gRPC without protobuf: what comes again byte for byte, but for the numbers, is parsed once.

A client in a loop sends the same message each time, up to the contents of its tensors, and those are the message's last
fields. What stands before them is its head. A head that was parsed once is looked up, and the tensors are views of what
follows; the head of an answer is kept by what determines it. A message is taken here only where protobuf could read
nothing else: its head is known, it is as long as the one that the head came with, and the bytes that frame each tensor
are the same ones. Anything else is protobuf's, with whatever is wrong with it.
Source: protobuf encoding, "Last One Wins" and "Message Structure": the parse of a concatenation is the merge of parses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from penstock.rpc import codec
from penstock.rpc.codec import DecodedRequest
from penstock.rpc.pb import oip_pb2 as pb
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import datatype_of, numpy_dtype

MAX_HEADS = 256
MAX_HEAD_BYTES = 2048
_MAX_SIZES = 4
_RARELY = 16
_NOT_KEPT = frozenset({"BYTES", "BOOL"})  # whether these are right depends on the bytes themselves
_RAW_INPUT, _RAW_OUTPUT, _ID = b"\x3a", b"\x32", b"\x1a"  # fields 7 of a request, 6 and 3 of an answer, with a length


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRequest:
    """What a head says.

    Attributes:
        template: the request without its inputs.
        tensors: of each input its name, dtype, shape, number of elements, and where its bytes begin.
        frames: where the bytes before a second and further tensor begin, and what they are.
    """

    template: InferRequest
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, int], ...]
    frames: tuple[tuple[int, bytes], ...]

    def decode(self, data: bytes) -> DecodedRequest:
        """Decode the message that this head was found for. Arrays are read-only views."""
        template = self.template
        inputs = {
            name: np.frombuffer(data, dtype, count, offset).reshape(shape)
            for name, dtype, shape, count, offset in self.tensors
        }
        request = InferRequest(
            model=template.model,
            version=template.version,
            inputs=inputs,
            outputs=template.outputs,
            parameters=template.parameters,
        )
        return DecodedRequest(request, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """An answer's bytes before its id, between id and tensors, and before each tensor."""

    parameters: object
    before_id: bytes
    after_id: bytes
    frames: tuple[bytes, ...]


class KnownHeads:
    """Heads of requests and answers, at most ``MAX_HEADS`` of each; when there are more, all are learnt again."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, ...]] = {}  # length of a message -> lengths of heads that it may begin with
        self._requests: dict[bytes, KnownRequest] = {}
        self._answers: dict[tuple[object, ...], _Answer] = {}
        self._in_vain = 0  # heads that were learnt since one was found

    def find(self, data: bytes) -> KnownRequest | None:
        """Return what is known of a message; None leaves it to protobuf."""
        for size in self._sizes.get(len(data), ()):
            known = self._requests.get(data[:size])
            if known is not None:
                if not all(data.startswith(frame, start) for start, frame in known.frames):
                    return None
                self._in_vain = 0
                return known
        return None

    def learn(self, data: bytes, message: pb.ModelInferRequest, decoded: DecodedRequest) -> None:
        """Keep the head of a request that protobuf has read, where the next one like it can do without."""
        self._in_vain += 1
        if self._in_vain > MAX_HEADS and self._in_vain % _RARELY:
            return  # every head is another one: learning costs as much as it would save
        kept = _kept(data, message, decoded.request)
        if kept is None:
            return
        head, request = kept
        sizes = self._sizes.get(len(data), ())
        if len(head) not in sizes:
            if len(sizes) >= _MAX_SIZES:
                return
            sizes = (*sizes, len(head))
        if len(self._requests) >= MAX_HEADS:
            self._requests.clear()
            self._sizes.clear()
            sizes = (len(head),)
        self._requests[head], self._sizes[len(data)] = request, sizes

    def encode(self, response: InferResponse, decoded: DecodedRequest) -> bytes:
        """Encode an answer, as :func:`penstock.rpc.codec.encode_response` does."""
        outputs = response.outputs
        key = (response.model, response.version, *[(name, a.dtype, a.shape) for name, a in outputs.items()])
        is_plain = decoded.raw and decoded.placements is None
        known = self._answers.get(key) if is_plain else None
        if known is None or known.parameters is not response.parameters:
            if not is_plain or not self._learn_answer(key, response):
                return codec.encode_response(response, decoded).SerializeToString()
            known = self._answers[key]
        parts = [known.before_id]
        if given := response.id or decoded.request.id:
            text = given.encode()
            parts += (_ID, _varint(len(text)), text)
        parts.append(known.after_id)
        for frame, array in zip(known.frames, outputs.values(), strict=True):
            parts += (frame, array.tobytes())
        return b"".join(parts)

    def _learn_answer(self, key: tuple[object, ...], response: InferResponse) -> bool:
        for name, array in response.outputs.items():
            if array.dtype.byteorder == ">" or datatype_of(array, field=name) == "BYTES" or not array.nbytes:
                return False
        asked = DecodedRequest(InferRequest(model=response.model, inputs={}))
        whole = codec.encode_response(response, asked)
        whole.ClearField("raw_output_contents")
        whole.ClearField("id")
        before = pb.ModelInferResponse(model_name=whole.model_name, model_version=whole.model_version)
        whole.ClearField("model_name")
        whole.ClearField("model_version")
        if len(self._answers) >= MAX_HEADS:
            self._answers.clear()
        self._answers[key] = _Answer(
            parameters=response.parameters,
            before_id=before.SerializeToString(),
            after_id=whole.SerializeToString(),
            frames=tuple(_RAW_OUTPUT + _varint(array.nbytes) for array in response.outputs.values()),
        )
        return True


def _kept(data: bytes, message: pb.ModelInferRequest, request: InferRequest) -> tuple[bytes, KnownRequest] | None:
    """Cut a message into its head and its tensors; None where it is no such message, or not worth keeping."""
    raws = message.raw_input_contents
    if request.id or len(raws) != len(request.inputs) or not _is_numeric(message):
        return None
    frames = [_RAW_INPUT + _varint(len(raw)) for raw in raws]
    tail = b"".join([part for pair in zip(frames, raws, strict=True) for part in pair])
    start = len(data) - len(tail)
    size = start + len(frames[0])
    if start < 0 or size > MAX_HEAD_BYTES or not data.endswith(tail) or not _has_no_raws(data[:start]):
        return None
    tensors, places, at = [], [], start
    for tensor, frame, raw in zip(message.inputs, frames, raws, strict=True):
        places.append((at, frame))
        dtype = numpy_dtype(tensor.datatype)
        at += len(frame)
        tensors.append((tensor.name, dtype, tuple(tensor.shape), len(raw) // dtype.itemsize, at))
        at += len(raw)
    template = msgspec.structs.replace(request, inputs={})
    return data[:size], KnownRequest(template=template, tensors=tuple(tensors), frames=tuple(places[1:]))


def _is_numeric(message: pb.ModelInferRequest) -> bool:
    """Say whether any bytes of the right number are right for every tensor, and nothing else is asked for."""
    return (
        all(tensor.datatype not in _NOT_KEPT and not tensor.parameters for tensor in message.inputs)
        and not any(output.parameters for output in message.outputs)
        and all(message.raw_input_contents)
    )


def _has_no_raws(head: bytes) -> bool:
    """Say whether a head is a message by itself, and holds no tensor's bytes."""
    try:
        return not pb.ModelInferRequest.FromString(head).raw_input_contents
    except DecodeError:
        return False


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
