"""The shapes of the inference protocol's JSON bodies, as the OpenAPI document has them.

Nothing is decoded by them; that is ``penstock.rest.codec``'s, which says better what is wrong.
Source: Open Inference Protocol, "HTTP/REST"; Triton's extensions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
Parameters = dict[str, bool | int | float | str]


class TensorParameters(TypedDict):
    """Where a tensor's bytes are, if they are not in ``data``."""

    binary_data_size: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]
    shared_memory_region: NotRequired[str]
    shared_memory_byte_size: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]
    shared_memory_offset: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]


class Tensor(TypedDict):
    """A tensor; ``data`` is a flat or nested list in row-major order."""

    name: str
    datatype: Datatype
    shape: list[Dimension]
    data: NotRequired[list[Any]]
    parameters: NotRequired[TensorParameters]


class OutputParameters(TypedDict):
    """How an output is wanted: raw, as its most likely classes, or in shared memory."""

    binary_data: NotRequired[bool]
    classification: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]
    shared_memory_region: NotRequired[str]
    shared_memory_byte_size: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]
    shared_memory_offset: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]


class WantedOutput(TypedDict):
    """An output that is wanted."""

    name: str
    parameters: NotRequired[OutputParameters]


class InferBody(TypedDict):
    """An inference request; without ``outputs`` all of them are answered."""

    inputs: Annotated[list[Tensor], msgspec.Meta(min_length=1)]
    id: NotRequired[str]
    outputs: NotRequired[list[WantedOutput]]
    parameters: NotRequired[Parameters]


class InferAnswer(TypedDict):
    """An inference answer."""

    model_name: str
    model_version: NotRequired[str]
    id: NotRequired[str]
    parameters: NotRequired[Parameters]
    outputs: list[Tensor]


class ServerMetadata(TypedDict):
    """What a server is, and which extensions work."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(TypedDict):
    """Name, datatype and shape of an input or output; -1 is any size."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: NotRequired[dict[str, str]]


class ModelMetadataDocument(TypedDict):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: NotRequired[dict[str, str]]


class ModelReady(TypedDict):
    """A model that can answer now."""

    name: str
    version: str
    ready: bool


class StateDocument(TypedDict):
    """One line of the index."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str
    is_default: NotRequired[bool]
    percent: NotRequired[float]
    is_certified: NotRequired[bool]


class IndexBody(TypedDict):
    """Which models are listed."""

    ready: NotRequired[bool]


class Models(TypedDict):
    """The index under a name."""

    models: list[StateDocument]


class Duration(TypedDict):
    """How many there were, and nanoseconds that they took together."""

    count: int
    ns: int


class BatchDocument(TypedDict):
    """Runs of one size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class StatisticsDocument(TypedDict):
    """What one version has answered since the server began."""

    name: str
    version: str
    inference_count: int
    execution_count: NotRequired[int]
    last_inference: NotRequired[int]
    inference_stats: NotRequired[dict[str, Duration]]
    batch_stats: NotRequired[list[BatchDocument]]
    rows: NotRequired[dict[str, int]]


class Statistics(TypedDict):
    """What versions have answered since the server began."""

    model_stats: list[StatisticsDocument]


class ConfigTensor(TypedDict):
    """An input or output, without the batch's dimension where ``max_batch_size`` is not 0."""

    name: str
    data_type: str
    dims: list[int]
    format: NotRequired[str]


class Config(TypedDict):
    """How a version is run, in the form of Triton's model configuration."""

    name: str
    platform: str
    backend: str
    version_policy: NotRequired[dict[str, Any]]
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    instance_group: list[dict[str, Any]]
    parameters: dict[str, dict[str, str]]
    model_transaction_policy: dict[str, bool]
    dynamic_batching: NotRequired[dict[str, int]]
