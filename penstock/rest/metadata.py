"""A model's metadata as JSON, to and from plain values.
Source: Open Inference Protocol, "HTTP/REST", model metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.errors import Internal
from penstock.wire.inference import ModelMetadata, input_parameters, names_from, output_parameters
from penstock.wire.tensors import TensorSpec


class _MetadataTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None  # MLServer sends null


class _Metadata(msgspec.Struct):
    name: str
    platform: str = ""
    versions: list[str] = []
    inputs: list[_MetadataTensor] = []
    outputs: list[_MetadataTensor] = []
    properties: dict[str, Any] | None = None


_METADATA = msgspec.json.Decoder(_Metadata)


def encode_metadata(metadata: ModelMetadata) -> bytes:
    """Write the JSON of ``GET /v2/models/{model}``."""
    return msgspec.json.encode(metadata_document(metadata))


def metadata_document(metadata: ModelMetadata) -> dict[str, Any]:
    """Make the document of ``GET /v2/models/{model}``."""
    document = {
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": [_tensor_document(spec, input_parameters(metadata, spec.name)) for spec in metadata.inputs],
        "outputs": [_tensor_document(spec, output_parameters(metadata, spec.name)) for spec in metadata.outputs],
    }
    return {**document, "properties": dict(metadata.properties)} if metadata.properties else document


def decode_metadata(body: bytes) -> ModelMetadata:
    """Undo :func:`encode_metadata`; fields that only other servers send are ignored.

    Raises:
        Internal: the server answered something else.
    """
    try:
        sent = _METADATA.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Internal(f"the server's answer is not a model's metadata: {error}") from None
    inputs, outputs = ({one.name: one.parameters or {} for one in tensors} for tensors in (sent.inputs, sent.outputs))
    return ModelMetadata(
        name=sent.name,
        versions=tuple(sent.versions),
        platform=sent.platform,
        inputs=tuple(_spec(tensor) for tensor in sent.inputs),
        outputs=tuple(_spec(tensor) for tensor in sent.outputs),
        properties={name: text for name, text in (sent.properties or {}).items() if isinstance(text, str)},
        columns=names_from(inputs, "columns"),
        labels=names_from(outputs, "labels"),
        units=names_from({**outputs, **inputs}, "units"),
    )


def _tensor_document(spec: TensorSpec, parameters: Mapping[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    return document | ({"parameters": parameters} if parameters else {})


def _spec(tensor: _MetadataTensor) -> TensorSpec:
    return TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape))
