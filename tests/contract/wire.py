"""One inference request said on every wire, byte by byte, so that it can be wrong in ways no client of ours would send.

``Ask`` is what is asked; ``over_http`` and ``over_grpc`` say it; both bring back a ``Refusal`` in the same words.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any

import grpc

from penstock.rest.connection import UnixConnection
from penstock.rpc.pb import oip_pb2, oip_pb2_grpc
from penstock.rpc.status import OUR_PUSHBACK, PUSHBACK
from penstock.wire.addresses import parse_target
from tests.waiting import PATIENCE_S

ROW_BYTES = 64 * 4


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request for the digits model; right unless told otherwise. ``raw`` is what is sent for the input."""

    model: str = "digits"
    version: str = ""
    name: str = "x"
    datatype: str = "FP32"
    shape: tuple[int, ...] = (1, 64)
    raw: bytes = bytes(ROW_BYTES)
    output: str = ""
    parameters: dict[str, int | str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """``status``: an HTTP number or a gRPC name. ``hints``: headers or trailers, names in lower case."""

    status: int | str
    message: str
    hints: dict[str, str]

    @property
    def code(self) -> str:
        return self.hints.get("x-penstock-code", "")

    @property
    def pushback_ms(self) -> int:
        """Over gRPC, under the name that the server which listens can send (adr/0068)."""
        (given,) = (self.hints[name] for name in (PUSHBACK, OUR_PUSHBACK) if name in self.hints)
        return int(given)


def connection(target: str) -> http.client.HTTPConnection:
    where = parse_target(target)
    if where.scheme == "unix":
        return UnixConnection(where.path, PATIENCE_S)
    return http.client.HTTPConnection(where.host, where.port, timeout=PATIENCE_S)


def http_message(ask: Ask) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers: JSON, then the raw bytes."""
    given = {
        "name": ask.name,
        "datatype": ask.datatype,
        "shape": ask.shape,
        "parameters": {"binary_data_size": len(ask.raw)},
    }
    document: dict[str, Any] = {"inputs": [given], "parameters": ask.parameters}
    if ask.output:
        document["outputs"] = [{"name": ask.output}]
    head = json.dumps(document).encode()
    path = f"/v2/models/{ask.model}" + (f"/versions/{ask.version}" if ask.version else "") + "/infer"
    return path, head + ask.raw, {"Inference-Header-Content-Length": str(len(head)), **ask.headers}


def over_http(target: str, ask: Ask) -> Answer:
    path, body, headers = http_message(ask)
    link = connection(target)
    try:
        link.request("POST", path, body, headers)
        response = link.getresponse()
        content = response.read()
    finally:
        link.close()
    message = str(json.loads(content)["error"]) if response.status >= 400 else ""
    return Answer(
        status=response.status, message=message, hints={n.lower(): value for n, value in response.getheaders()}
    )


def grpc_message(ask: Ask) -> Any:
    given = oip_pb2.ModelInferRequest.InferInputTensor(name=ask.name, datatype=ask.datatype, shape=ask.shape)
    message = oip_pb2.ModelInferRequest(
        model_name=ask.model, model_version=ask.version, inputs=[given], raw_input_contents=[ask.raw]
    )
    if ask.output:
        message.outputs.add(name=ask.output)
    for name, value in ask.parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(message.parameters[name], kind, value)
    return message


def over_grpc(target: str, ask: Ask) -> Answer:
    with grpc.insecure_channel(parse_target(target).address) as channel:
        stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            _, call = stub.ModelInfer.with_call(
                grpc_message(ask), timeout=PATIENCE_S, metadata=tuple(ask.headers.items())
            )
        except grpc.RpcError as error:
            return Answer(status=error.code().name, message=error.details() or "", hints=_trailers(error))
        return Answer(status="OK", message="", hints=_trailers(call))


def _trailers(call: Any) -> dict[str, str]:
    return {name: str(value) for name, value in call.trailing_metadata() or ()}


def send(target: str, ask: Ask) -> Answer:
    """Over the wire that the target names."""
    return over_grpc(target, ask) if target.startswith("grpc://") else over_http(target, ask)
