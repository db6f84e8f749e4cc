"""Small real servers for the SDK's tests: numpy behind a grpc.aio server, an aiohttp server on TCP and on a socket."""

# ruff: noqa: N802 (methods of a servicer have the protocol's names)
from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from aiohttp import web

from penstock.errors import InvalidInput, NotFound, PenstockError, Unauthenticated, Unavailable
from penstock.rest import codec as rest
from penstock.rest import metadata as metadata_json
from penstock.rest.status import headers_of, http_status
from penstock.rpc import codec as rpc
from penstock.rpc import status
from penstock.rpc.channels import server_options
from penstock.rpc.pb import oip_pb2, oip_pb2_grpc
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata, Parameter
from penstock.wire.tensors import TensorSpec, check_inputs

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
TOKEN = "secret"
AGENT_PARAMETERS: Mapping[str, Parameter] = {
    "served_by": "edge",
    "confidence": 0.97,
    "threshold": 0.9,
    "certificate": "sha256:abc",
    "reason": "confident",
}


def _spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def _model(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> ModelMetadata:
    return ModelMetadata(name=name, versions=("v1",), platform="numpy", inputs=inputs, outputs=outputs)


_X, _LOGITS = (_spec("x", "FP32", -1, 4),), (_spec("logits", "FP32", -1, 3),)
_PAIR = (_spec("a", "FP32", -1, 2), _spec("s", "BYTES", -1, 1))
_FIXED = (_spec("m", "FP64", 2, 2),)
LINEAR = ("digits", "agent", "stuck", "busy", "down", "picky", "narrow", "broken", "secret")


def _models() -> dict[str, ModelMetadata]:
    linear = {name: _model(name, _X, _LOGITS) for name in LINEAR}
    return {**linear, "pair": _model("pair", _PAIR, _PAIR), "fixed": _model("fixed", _FIXED, _FIXED)}


@dataclass
class Backend:
    """What the servers serve, and what they saw. ``refusals`` is how often "busy" says no before it says yes."""

    models: dict[str, ModelMetadata] = field(default_factory=_models)
    refusals: int = 1
    requests: list[InferRequest] = field(default_factory=list)
    metadata_calls: int = 0
    cancelled: int = 0
    headers: list[Mapping[str, str]] = field(default_factory=list)
    gate: asyncio.Event | None = None  # when set, "digits" answers only once the gate is open

    def rows(self) -> list[int]:
        return [next(iter(request.inputs.values())).shape[0] for request in self.requests]

    def metadata(self, model: str) -> ModelMetadata:
        self.metadata_calls += 1
        return self._known(model)

    async def infer(self, request: InferRequest, headers: Mapping[str, str]) -> InferResponse:
        self.requests.append(request)
        self.headers.append(headers)
        known = self._known(request.model)
        check_inputs(request.inputs, known.inputs)
        if request.model in ("pair", "fixed"):
            return InferResponse(model=request.model, version="v1", id=request.id, outputs=request.inputs)
        await self._behave(request, headers)
        return InferResponse(
            model=request.model,
            version="v1",
            id=request.id,
            outputs={"logits": request.inputs["x"] @ WEIGHTS},
            parameters=AGENT_PARAMETERS if request.model == "agent" else {},
        )

    def _known(self, model: str) -> ModelMetadata:
        if model not in self.models:
            raise NotFound(f"model: no model {model!r}; known: {', '.join(self.models)}")
        return self.models[model]

    async def _behave(self, request: InferRequest, headers: Mapping[str, str]) -> None:
        x = request.inputs["x"]
        match request.model:
            case "digits" if self.gate is not None:
                await self.gate.wait()
            case "stuck":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            case "busy" if self.refusals > 0:
                self.refusals -= 1
                raise Unavailable("busy: loading", retry_after_s=0.0)
            case "down":
                raise Unavailable("down: no hint when to come back")
            case "picky" if (x < 0).any():
                raise InvalidInput("inputs.x: negative", field="inputs.x")
            case "narrow" if x.shape[0] > 2:
                raise InvalidInput("inputs.x: at most 2 rows", field="inputs.x")
            case "broken":
                raise RuntimeError("a defect of the server")
            case "secret" if headers.get("authorization") != f"Bearer {TOKEN}":
                raise Unauthenticated("who are you?")
            case _:
                pass


class _Servicer(oip_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return oip_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return oip_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        if request.name not in self._backend.models:
            await status.abort(context, NotFound(f"no model {request.name!r}"))
        return oip_pb2.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        try:
            return rpc.encode_metadata(self._backend.metadata(request.name))
        except PenstockError as error:
            await status.abort(context, error)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        try:
            decoded = rpc.decode_request(request)
            return rpc.encode_response(await self._backend.infer(decoded.request, headers), decoded)
        except PenstockError as error:
            await status.abort(context, error)


def _app(backend: Backend) -> web.Application:
    async def live(request: web.Request) -> web.Response:
        return web.Response()

    async def model_ready(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["model"] in backend.models else 404)

    async def metadata(request: web.Request) -> web.Response:
        try:
            body = metadata_json.encode_metadata(backend.metadata(request.match_info["model"]))
        except PenstockError as error:
            return _refused(error)
        return web.Response(body=body, content_type="application/json")

    async def infer(request: web.Request) -> web.Response:
        length = request.headers.get(rest.HEADER_LENGTH)
        headers = {key.lower(): value for key, value in request.headers.items()}
        try:
            decoded = rest.decode_request(
                await request.read(),
                header_length=None if length is None else int(length),
                model=request.match_info["model"],
                version=request.match_info.get("version", ""),
            )
            encoded = rest.encode_response(await backend.infer(decoded.request, headers), decoded)
        except PenstockError as error:
            return _refused(error)
        return web.Response(body=encoded.body, headers=encoded.headers)

    app = web.Application()
    app.router.add_get("/v2/health/live", live)
    app.router.add_get("/v2/health/ready", live)
    app.router.add_get("/v2/models/{model}", metadata)
    app.router.add_get("/v2/models/{model}/versions/{version}", metadata)
    app.router.add_get("/v2/models/{model}/ready", model_ready)
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        app.router.add_post(path, infer)
    return app


def _refused(error: PenstockError) -> web.Response:
    return web.Response(status=http_status(error), headers=headers_of(error), body=rest.encode_error(error))


@dataclass(kw_only=True)
class Servers:
    """Where they listen."""

    backend: Backend
    grpc: str
    http: str
    unix: str

    def target(self, scheme: str) -> str:
        return {"grpc": self.grpc, "http": self.http, "unix": self.unix}[scheme]


@contextlib.asynccontextmanager
async def running(backend: Backend) -> AsyncIterator[Servers]:
    """All three servers in the running event loop."""
    server = grpc.aio.server(options=server_options())
    oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(backend), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    # a grace period of nothing, or stuck handlers would hold up the end of the test
    runner = web.AppRunner(_app(backend), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # pytest's own paths are too long for a socket
        path = Path(directory) / "s"
        tcp = web.TCPSite(runner, "127.0.0.1", 0)
        await tcp.start()
        await web.UnixSite(runner, str(path)).start()
        try:
            yield Servers(
                backend=backend,
                grpc=f"grpc://127.0.0.1:{port}",
                http=f"http://127.0.0.1:{runner.addresses[0][1]}",
                unix=f"unix://{path}",
            )
        finally:
            await runner.cleanup()
            await server.stop(None)


@contextlib.contextmanager
def running_in_thread(backend: Backend) -> Iterator[Servers]:
    """The same, in a thread of their own, for a client that blocks."""
    started: list[Servers] = []
    is_up, stop = threading.Event(), None
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal stop
        stop = asyncio.Event()
        async with running(backend) as servers:
            started.append(servers)
            is_up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="servers")
    thread.start()
    assert is_up.wait(20)
    try:
        yield started[0]
    finally:
        assert stop is not None
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
