"""The Open Inference Protocol over HTTP: JSON bodies and the binary tensor extension, to and from plain values.

On the hot path of core, agent and SDK: raw bytes are not copied, and JSON is decoded by typed decoders. Headers,
statuses and sockets are not here; ``header_length`` is the value of ``Inference-Header-Content-Length``.
Source: Open Inference Protocol, "HTTP/REST"; Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from penstock.errors import Internal, InvalidInput, PenstockError
from penstock.rest import jsondata
from penstock.rest.raw_body import only_input
from penstock.wire.inference import (
    InferRequest,
    InferResponse,
    Parameter,
)
from penstock.wire.regions import NO_REGIONS, Placement, Regions, part_of, placement_of
from penstock.wire.tensors import (
    Array,
    TensorSpec,
    datatype_of,
    from_bytes,
    to_bytes,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = "application/json"
BINARY = "application/octet-stream"

_Dim = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Parameters = dict[str, bool | _Int64 | float | str]
_ALIGNMENT = 8
_ABSENT = msgspec.Raw(b"")


class _TensorParameters(msgspec.Struct, omit_defaults=True):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shared_memory_region: str | None = None
    shared_memory_byte_size: int | None = None
    shared_memory_offset: int = 0


class _Tensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[_Dim]
    parameters: _TensorParameters | None = None
    data: msgspec.Raw = _ABSENT


class _OutputParameters(msgspec.Struct, omit_defaults=True):
    binary_data: bool | None = None
    classification: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shared_memory_region: str | None = None
    shared_memory_byte_size: int | None = None
    shared_memory_offset: int = 0


class _WantedOutput(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: _OutputParameters | None = None


class _Request(msgspec.Struct, omit_defaults=True):
    inputs: list[_Tensor]
    id: str = ""
    parameters: _Parameters = {}
    outputs: list[_WantedOutput] = []


class _Response(msgspec.Struct, omit_defaults=True):
    model_name: str
    outputs: list[_Tensor]
    model_version: str = ""
    id: str = ""
    parameters: _Parameters = {}


class _SentTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _TensorParameters | Mapping[str, Parameter] | None = None
    data: list[Any] | None = None


class _SentRequest(msgspec.Struct, omit_defaults=True):
    inputs: list[_SentTensor]
    id: str = ""
    parameters: Mapping[str, Parameter] = {}
    outputs: list[_WantedOutput] = []


class _SentResponse(msgspec.Struct, omit_defaults=True):
    model_name: str
    outputs: list[_SentTensor]
    model_version: str = ""
    id: str = ""
    parameters: Mapping[str, Parameter] = {}


_REQUEST = msgspec.json.Decoder(_Request)
_RESPONSE = msgspec.json.Decoder(_Response)
_ENCODER = msgspec.json.Encoder()
# a malformed document, bytes that are not UTF-8, and lists nested without end
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


class DecodedRequest(msgspec.Struct, frozen=True):
    """A request, and how its outputs are wanted.

    Attributes:
        binary_outputs: which are wanted raw: all, none, or those named.
        classes: how many of its most likely classes, by output; None where all are wanted as they are.
        placements: where in shared memory, by output; None where all travel in the answer.
    """

    request: InferRequest
    binary_outputs: bool | frozenset[str] = False
    classes: Mapping[str, int] | None = None
    placements: Mapping[str, Placement] | None = None


class EncodedBody(msgspec.Struct, frozen=True):
    """A body to send. ``header_length`` is None for plain JSON, else what ``Inference-Header-Content-Length`` says."""

    body: bytes
    header_length: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that describe this body."""
        if self.header_length is None:
            return {"Content-Type": JSON}
        return {"Content-Type": BINARY, HEADER_LENGTH: str(self.header_length)}


def decode_request(
    body: bytes | memoryview,
    *,
    header_length: int | None = None,
    model: str,
    version: str = "",
    regions: Regions = NO_REGIONS,
) -> DecodedRequest:
    """Decode the body of ``POST /v2/models/{model}[/versions/{version}]/infer``.

    Arrays are read-only views of ``body`` where the binary form was used. ``regions`` are those of the server.

    Raises:
        InvalidInput: malformed in any way; never anything else.
    """
    header, raw = _split(body, header_length)
    try:
        sent = _REQUEST.decode(header)
    except _MALFORMED as error:
        raise InvalidInput(f"body: {_readable(error)}", field="body") from None
    inputs = _arrays(sent.inputs, raw, "inputs", regions)
    if not inputs:
        raise InvalidInput("inputs: the request has none", field="inputs")
    parameters = sent.parameters
    wants_binary = parameters.pop("binary_data_output", False) if parameters else False
    if not isinstance(wants_binary, bool):
        raise InvalidInput("parameters.binary_data_output: must be true or false", field="parameters")
    if not sent.outputs:
        request = InferRequest(model=model, version=version, id=sent.id, inputs=inputs, parameters=parameters)
        return DecodedRequest(request, wants_binary)
    outputs, binary = _wanted(sent.outputs, wants_binary)
    request = InferRequest(
        model=model, version=version, id=sent.id, inputs=inputs, outputs=outputs, parameters=parameters
    )
    return DecodedRequest(request, binary, *_forms(sent.outputs, regions))


def decode_raw_request(
    body: bytes | memoryview, specs: Sequence[TensorSpec], *, model: str, version: str = ""
) -> DecodedRequest:
    """Decode a body that is nothing but the bytes of the model's only input (a header length of 0); see
    :mod:`penstock.rest.raw_body`. All outputs are wanted raw.

    Args:
        specs: the model's inputs.

    Raises:
        InvalidInput: the model has several inputs, or the shape does not follow from the bytes.
    """
    return DecodedRequest(InferRequest(model=model, version=version, inputs=only_input(body, specs)), True)


def encode_response(response: InferResponse, decoded: DecodedRequest) -> EncodedBody:
    """Encode an answer the way its request asked for it: raw where asked raw, JSON elsewhere.

    Raises:
        InvalidInput: a BYTES output was wanted as JSON and is not UTF-8, or in shared memory and does not fit there.
    """
    binary = decoded.binary_outputs
    tensors, raws = _sent_tensors(response.outputs, binary, "outputs", decoded.placements)
    document = _SentResponse(
        response.model, tensors, response.version, response.id or decoded.request.id, response.parameters
    )
    return _joined(_ENCODER.encode(document), raws)


def encode_request(request: InferRequest, *, binary: bool = True) -> EncodedBody:
    """Encode a request; with ``binary`` inputs travel raw and outputs are wanted raw.

    Raises:
        InvalidInput: a dtype that cannot travel, or (without ``binary``) BYTES that are not UTF-8.
    """
    tensors, raws = _sent_tensors(request.inputs, binary, "inputs")
    parameters = {**request.parameters, "binary_data_output": True} if binary else request.parameters
    wanted = [_WantedOutput(name) for name in request.outputs]
    document = _SentRequest(tensors, request.id, parameters, wanted)
    return _joined(_ENCODER.encode(document), raws)


def decode_response(body: bytes | memoryview, *, header_length: int | None = None) -> InferResponse:
    """Decode a server's answer.

    Raises:
        Internal: the server answered something that is not an inference response.
    """
    try:
        header, raw = _split(body, header_length)
        sent = _RESPONSE.decode(header)
        outputs = _arrays(sent.outputs, raw, "outputs", NO_REGIONS, gaps=True)
    except (InvalidInput, *_MALFORMED) as error:
        raise Internal(f"the server's answer is not a valid inference response: {error}") from None
    return InferResponse(
        model=sent.model_name, version=sent.model_version, id=sent.id, outputs=outputs, parameters=sent.parameters
    )


def parse_header_length(text: str) -> int:
    """Read the value of ``Inference-Header-Content-Length``.

    Raises:
        InvalidInput: not a number of bytes.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidInput(
            f"{HEADER_LENGTH}: {text[:40]!r} is not a length; expected a number of bytes, of at most 12 digits",
            field=HEADER_LENGTH,
        )
    return int(text)


def encode_error(error: PenstockError) -> bytes:
    """Write ``{"error": "..."}``, the body that the protocol gives every failure."""
    return _ENCODER.encode({"error": error.message})


def _split(body: bytes | memoryview, header_length: int | None) -> tuple[bytes | memoryview, memoryview | None]:
    if header_length is None:
        return body, None
    if not 0 <= header_length <= len(body):
        raise InvalidInput(
            f"{HEADER_LENGTH}: {header_length} does not fit a body of {len(body)} bytes", field=HEADER_LENGTH
        )
    view = memoryview(body)
    return view[:header_length], view[header_length:]


def _arrays(
    tensors: list[_Tensor], raw: memoryview | None, where: str, regions: Regions, *, gaps: bool = False
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    at = 0
    for tensor in tensors:
        name = tensor.name
        field = f"{where}.{name}"
        parameters = tensor.parameters
        size = None
        if name in arrays:
            raise InvalidInput(f"{field}: given twice", field=field)
        if parameters is not None:
            size = parameters.binary_data_size
            if parameters.shared_memory_region is not None:
                arrays[name] = _shared_array(tensor, parameters, regions, field)
                continue
        if size is not None:
            arrays[name] = _raw_array(tensor, raw, at, size, field)
            at += size
        elif tensor.data != _ABSENT:
            arrays[name] = jsondata.decode(tensor.data, tensor.datatype, tensor.shape, field=field, gaps=gaps)
        else:
            raise InvalidInput(f"{field}: neither data nor parameters.binary_data_size is given", field=field)
    if raw is not None and at != len(raw):
        raise InvalidInput(f"body: {len(raw) - at} bytes after the last tensor's binary data", field="body")
    return arrays


def _raw_array(tensor: _Tensor, raw: memoryview | None, at: int, size: int, field: str) -> Array:
    if raw is None:
        raise InvalidInput(f"{field}: binary data needs the header {HEADER_LENGTH}", field=field)
    if tensor.data != _ABSENT:
        raise InvalidInput(f"{field}: both data and binary_data_size are given", field=field)
    if at + size > len(raw):
        raise InvalidInput(
            f"{field}: binary_data_size is {size}, but only {len(raw) - at} bytes are left in the body", field=field
        )
    array = from_bytes(raw[at : at + size], tensor.datatype, tensor.shape, field=field)
    # a JSON header of any length comes before the bytes, and not every kernel reads unaligned floats on every machine
    return array if array.flags.aligned else array.copy()


def _shared_array(tensor: _Tensor, parameters: _TensorParameters, regions: Regions, field: str) -> Array:
    part = part_of(msgspec.structs.asdict(parameters), regions, field=field)
    assert part is not None
    if tensor.data != _ABSENT or parameters.binary_data_size is not None:
        raise InvalidInput(f"{field}: both data and a shared memory region are given", field=field)
    return from_bytes(regions.read(*part, field=field), tensor.datatype, tensor.shape, field=field)


def _forms(
    outputs: list[_WantedOutput], regions: Regions
) -> tuple[Mapping[str, int] | None, Mapping[str, Placement] | None]:
    """Read which outputs are wanted as classes, and which in shared memory."""
    classes: dict[str, int] = {}
    placements: dict[str, Placement] = {}
    for output in outputs:
        parameters = output.parameters
        if parameters is None:
            continue
        if parameters.classification:
            classes[output.name] = parameters.classification
        if parameters.shared_memory_region is not None:
            field = f"outputs.{output.name}"
            placement = placement_of(msgspec.structs.asdict(parameters), regions, field=field)
            assert placement is not None
            placements[output.name] = placement
    return classes or None, placements or None


def _wanted(outputs: list[_WantedOutput], default: bool) -> tuple[tuple[str, ...], bool | frozenset[str]]:
    names = tuple(output.name for output in outputs)
    if len(set(names)) != len(names):
        raise InvalidInput("outputs: a name is given twice", field="outputs")
    raw = []
    for output in outputs:
        parameters = output.parameters
        if parameters is None:
            is_raw = default
        else:
            is_raw = default if parameters.binary_data is None else parameters.binary_data
        if is_raw:
            raw.append(output.name)
    if len(raw) in (0, len(names)):
        return names, bool(raw)
    return names, frozenset(raw)


def _sent_tensors(
    arrays: Mapping[str, Array],
    binary: bool | frozenset[str],
    where: str,
    placements: Mapping[str, Placement] | None = None,
) -> tuple[list[_SentTensor], list[bytes]]:
    tensors = []
    raws = []
    for name, array in arrays.items():
        datatype = datatype_of(array, field=name)
        if placements is not None and name in placements:
            field = f"{where}.{name}"
            told = placements[name].put(to_bytes(array, field=field), field=field)
            tensors.append(_SentTensor(name, datatype, array.shape, told))
        elif binary is True or (binary and name in binary):
            raw = to_bytes(array, field=f"{where}.{name}")
            raws.append(raw)
            tensors.append(_SentTensor(name, datatype, array.shape, _TensorParameters(len(raw))))
        else:
            data = jsondata.encode(array, datatype, field=f"{where}.{name}")
            tensors.append(_SentTensor(name, datatype, array.shape, None, data))
    return tensors, raws


def _joined(header: bytes, raws: list[bytes]) -> EncodedBody:
    if not raws:
        return EncodedBody(header)
    # spaces are JSON's own padding: they let the receiver view the tensors in place
    header += b" " * (-len(header) % _ALIGNMENT)
    return EncodedBody(b"".join([header, *raws]), len(header))


def _readable(error: Exception) -> str:
    return "not valid JSON: nested too deeply" if isinstance(error, RecursionError) else f"not a valid request: {error}"
