"""The wire forms that must not change unnoticed. ``python -m tests.penstock.wire_forms`` rewrites them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from penstock.errors import InvalidInput
from penstock.rest import codec as rest
from penstock.rest import metadata
from penstock.rpc import codec as rpc
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata
from penstock.wire.tensors import TensorSpec

GOLDEN = Path(__file__).parent / "golden"

REQUEST = InferRequest(
    model="digits",
    version="v2",
    id="r-1",
    inputs={
        "x": np.array([[0.5, -1.25], [3.0, 4.0]], dtype=np.float32),
        "note": np.array([[b"\x00\xff"], ["grün".encode()]], dtype=object),
    },
    outputs=("logits",),
    parameters={"timeout": 250_000},
)
TEXT_REQUEST = InferRequest(
    model="digits", inputs={"x": np.array([[1, 2]], dtype=np.int64), "on": np.array([True])}, parameters={}
)
RESPONSE = InferResponse(
    model="digits",
    version="v2",
    id="r-1",
    outputs={
        "logits": np.array([[0.1, 0.9], [1.0, -2.0]], dtype=np.float32),
        "half": np.array([[1.5], [2.0]], dtype=np.float16),
    },
    parameters={"served_by": "edge"},
)
METADATA = ModelMetadata(
    name="digits",
    versions=("v1", "v2"),
    platform="onnxruntime",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 64)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
)


def documents() -> Mapping[str, bytes]:
    """File name to content."""
    binary = rest.encode_request(REQUEST)
    text = rest.encode_request(TEXT_REQUEST, binary=False)
    wants_raw = rest.decode_request(binary.body, header_length=binary.header_length, model="digits", version="v2")
    answer = rest.encode_response(RESPONSE, rest.DecodedRequest(wants_raw.request, True))
    text_answer = rest.encode_response(RESPONSE, rest.DecodedRequest(wants_raw.request, False))
    message = rpc.encode_request(REQUEST)
    reply = rpc.encode_response(RESPONSE, rpc.DecodedRequest(REQUEST, True))
    return {
        "rest_request.bin": binary.body,
        "rest_request.json": text.body,
        "rest_response.bin": answer.body,
        "rest_response.json": text_answer.body,
        "rest_metadata.json": metadata.encode_metadata(METADATA),
        "rest_error.json": rest.encode_error(InvalidInput("inputs.x: datatype is FP64, expected FP32", field="x")),
        "rpc_request.bin": message.SerializeToString(deterministic=True),
        "rpc_response.bin": reply.SerializeToString(deterministic=True),
        "rpc_metadata.bin": rpc.encode_metadata(METADATA).SerializeToString(deterministic=True),
    }


if __name__ == "__main__":
    for name, content in documents().items():
        (GOLDEN / name).write_bytes(content)
