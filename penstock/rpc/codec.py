"""The Open Inference Protocol over gRPC: messages to and from plain values.

On the hot path of core and SDK. Raw contents are views of the message's bytes; typed contents are accepted too, and an
answer is raw when its request was raw.
Source: Open Inference Protocol, "GRPC"; raw contents are all or nothing in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import msgspec
import numpy as np

from penstock.errors import Internal, InvalidInput
from penstock.rpc.pb import oip_pb2
from penstock.wire.inference import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameter,
    input_parameters,
    names_from,
    output_parameters,
)
from penstock.wire.regions import NO_REGIONS, REGION, Placement, Regions, part_of, placement_of
from penstock.wire.tensors import (
    Array,
    TensorSpec,
    bytes_elements,
    datatype_of,
    from_bytes,
    numpy_dtype,
    reshape,
    to_bytes,
)

# the field of InferTensorContents that carries a datatype; FP16 has none and travels raw only
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class DecodedRequest(msgspec.Struct, frozen=True):  # a frozen dataclass costs a microsecond each
    """A request, and how its outputs are wanted.

    Attributes:
        raw: whether its tensors came raw, or in shared memory; then the answer's go raw too.
        classes: how many of its most likely classes, by output; None where all are wanted as they are.
        placements: where in shared memory, by output; None where all travel in the answer.
    """

    request: InferRequest
    raw: bool = True
    classes: Mapping[str, int] | None = None
    placements: Mapping[str, Placement] | None = None


def decode_request(message: oip_pb2.ModelInferRequest, regions: Regions = NO_REGIONS) -> DecodedRequest:
    """Decode a ``ModelInferRequest``. Arrays are read-only views where contents are raw. ``regions`` are the server's.

    Raises:
        InvalidInput: malformed in any way; never anything else.
    """
    tensors = message.inputs
    if not tensors:
        raise InvalidInput("inputs: the request has none", field="inputs")
    raws = message.raw_input_contents
    outputs: tuple[str, ...] = ()
    classes, placements = None, None
    if message.outputs:
        outputs = tuple(output.name for output in message.outputs)
        if len(set(outputs)) != len(outputs):
            raise InvalidInput("outputs: a name is given twice", field="outputs")
        classes, placements = _forms(message.outputs, regions)
    inputs = _arrays(tensors, raws, "inputs", regions)
    request = InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        inputs=inputs,
        outputs=outputs,
        parameters=_parameters(message.parameters) if message.parameters else {},
    )
    is_raw = bool(raws) or any(_is_shared(tensor) for tensor in tensors)
    return DecodedRequest(request, is_raw, classes, placements)


def encode_response(response: InferResponse, decoded: DecodedRequest) -> oip_pb2.ModelInferResponse:
    """Encode an answer: raw when the request was raw, or when an output's datatype has no typed form (FP16)."""
    outputs = [(name, datatype_of(array, field=name), array) for name, array in response.outputs.items()]
    message = oip_pb2.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id or decoded.request.id
    )
    _put_parameters(message.parameters, response.parameters)
    placements = decoded.placements
    if decoded.raw or placements is not None or any(datatype not in _CONTENTS for _, datatype, _ in outputs):
        for name, datatype, array in outputs:
            tensor = message.outputs.add(name=name, datatype=datatype, shape=array.shape)
            data = to_bytes(array, field=name)
            if placements is not None and name in placements:
                _put_parameters(tensor.parameters, placements[name].put(data, field=f"outputs.{name}"))
                data = b""  # clients count entries
            message.raw_output_contents.append(data)
    else:
        for name, datatype, array in outputs:
            tensor = message.outputs.add(name=name, datatype=datatype, shape=array.shape)
            getattr(tensor.contents, _CONTENTS[datatype]).extend(_elements(array, datatype, name))
    return message


def encode_request(request: InferRequest) -> oip_pb2.ModelInferRequest:
    """Encode a request with raw contents.

    Raises:
        InvalidInput: a dtype that cannot travel, or a parameter that fits no protobuf type.
    """
    message = oip_pb2.ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(array, field=name), shape=array.shape)
        message.raw_input_contents.append(to_bytes(array, field=f"inputs.{name}"))
    for output in request.outputs:
        message.outputs.add(name=output)
    _put_parameters(message.parameters, request.parameters)
    return message


def decode_response(message: oip_pb2.ModelInferResponse) -> InferResponse:
    """Decode a server's answer.

    Raises:
        Internal: tensors whose bytes do not fit their shapes.
    """
    try:
        outputs = _arrays(message.outputs, message.raw_output_contents, "outputs", NO_REGIONS)
        parameters = _parameters(message.parameters) if message.parameters else {}
    except InvalidInput as error:
        raise Internal(f"the server's answer is not a valid inference response: {error}") from None
    return InferResponse(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        outputs=outputs,
        parameters=parameters,
    )


def encode_metadata(metadata: ModelMetadata) -> oip_pb2.ModelMetadataResponse:
    """Write a ``ModelMetadataResponse``."""
    message = oip_pb2.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        properties=metadata.properties,
    )
    for specs, tensors, parameters_of in (
        (metadata.inputs, message.inputs, input_parameters),
        (metadata.outputs, message.outputs, output_parameters),
    ):
        for spec in specs:
            tensor = tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
            for name, text in parameters_of(metadata, spec.name).items():
                tensor.parameters[name].string_param = text
    return message


def decode_metadata(message: oip_pb2.ModelMetadataResponse) -> ModelMetadata:
    """Undo :func:`encode_metadata`."""
    inputs, outputs = (
        {one.name: {name: value.string_param for name, value in one.parameters.items()} for one in tensors}
        for tensors in (message.inputs, message.outputs)
    )
    return ModelMetadata(
        name=message.name,
        versions=tuple(message.versions),
        platform=message.platform,
        inputs=tuple(_spec(tensor) for tensor in message.inputs),
        outputs=tuple(_spec(tensor) for tensor in message.outputs),
        properties=dict(message.properties),
        columns=names_from(inputs, "columns"),
        labels=names_from(outputs, "labels"),
        units=names_from({**outputs, **inputs}, "units"),
    )


def _arrays(tensors: Any, raws: Any, where: str, regions: Regions) -> dict[str, Array]:
    count = len(raws)
    # a tensor in shared memory comes without contents
    elsewhere = [tensor for tensor in tensors if not _is_shared(tensor)] if count != len(tensors) else tensors
    if count and count != len(elsewhere):
        field = f"raw_{where[:-1]}_contents"
        raise InvalidInput(f"{field}: {count} entries for {len(elsewhere)} {where}; raw is all or nothing", field=field)
    arrays: dict[str, Array] = {}
    index = 0
    for tensor in tensors:
        name = tensor.name
        field = f"{where}.{name}"
        if name in arrays:
            raise InvalidInput(f"{field}: given twice", field=field)
        if tensor.parameters and REGION in tensor.parameters:
            arrays[name] = _shared(tensor, regions, field)
        elif count:
            if tensor.HasField("contents"):
                raise InvalidInput(f"{field}: both contents and raw contents are given", field=field)
            arrays[name] = from_bytes(raws[index], tensor.datatype, tensor.shape, field=field)
            index += 1
        else:
            arrays[name] = _typed(tensor, field)
    if index != count:
        field = f"raw_{where[:-1]}_contents"
        raise InvalidInput(f"{field}: {count} entries, and {index} tensors without shared memory", field=field)
    return arrays


def _is_shared(tensor: Any) -> bool:
    return bool(tensor.parameters) and REGION in tensor.parameters


def _shared(tensor: Any, regions: Regions, field: str) -> Array:
    part = part_of(_parameters(tensor.parameters), regions, field=field)
    assert part is not None
    if tensor.HasField("contents"):
        raise InvalidInput(f"{field}: both contents and a shared memory region are given", field=field)
    return from_bytes(regions.read(*part, field=field), tensor.datatype, tensor.shape, field=field)


def _typed(tensor: Any, field: str) -> Array:
    datatype = tensor.datatype
    dtype = numpy_dtype(datatype, field=field)
    if datatype not in _CONTENTS:
        raise InvalidInput(f"{field}: {datatype} travels only in raw contents", field=field)
    fields = tensor.contents.ListFields()
    if len(fields) > 1 or (fields and fields[0][0].name != _CONTENTS[datatype]):
        raise InvalidInput(f"{field}: {datatype} values belong in contents.{_CONTENTS[datatype]}", field=field)
    values = list(fields[0][1]) if fields else []
    try:
        array: Array = np.array(values, dtype=dtype)
    except OverflowError:
        raise InvalidInput(f"{field}: a value is out of range for {datatype}", field=field) from None
    return reshape(array, tensor.shape, field=field)


def _forms(outputs: Any, regions: Regions) -> tuple[Mapping[str, int] | None, Mapping[str, Placement] | None]:
    """Read which outputs are wanted as classes, and which in shared memory."""
    classes: dict[str, int] = {}
    placements: dict[str, Placement] = {}
    for output in outputs:
        if not output.parameters:
            continue
        field = f"outputs.{output.name}"
        parameters = _parameters(output.parameters)
        count = parameters.get("classification", 0)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidInput(f"{field}: classification is {count!r}, and has to be a number of classes", field=field)
        if count:
            classes[output.name] = count
        placement = placement_of(parameters, regions, field=field)
        if placement is not None:
            placements[output.name] = placement
    return classes or None, placements or None


def _elements(array: Array, datatype: str, field: str) -> Iterable[Any]:
    return bytes_elements(array, field=field) if datatype == "BYTES" else array.ravel().tolist()


def _parameters(sent: Mapping[str, oip_pb2.InferParameter]) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, parameter in sent.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"parameters.{name}: has no value", field=f"parameters.{name}")
        parameters[name] = getattr(parameter, choice)
    return parameters


def _put_parameters(target: MutableMapping[str, oip_pb2.InferParameter], parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        try:
            if isinstance(value, bool):
                target[name].bool_param = value
            elif isinstance(value, int):
                target[name].int64_param = value
            elif isinstance(value, float):
                target[name].double_param = value
            else:
                target[name].string_param = value
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"parameters.{name}: cannot travel: {error}", field=f"parameters.{name}") from None


def _spec(tensor: oip_pb2.ModelMetadataResponse.TensorMetadata) -> TensorSpec:
    return TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape))
