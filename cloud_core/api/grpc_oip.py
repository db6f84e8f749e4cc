"""The Open Inference Protocol over gRPC: decode, call the data plane, encode.

Requests arrive as bytes and are parsed here, so that a caller without a credential costs no parsing. Decides nothing
about admission; see ``serving.dataplane``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from cloud_core.serving.dataplane import EXTENSIONS, SERVER_NAME, DataPlane
from penstock.errors import Internal, InvalidInput, PenstockError
from penstock.process.telemetry import log, parse_traceparent, request_id
from penstock.rpc import codec
from penstock.rpc.pb import oip_pb2 as pb
from penstock.rpc.status import grpc_status, trailing_metadata

_log = logging.getLogger(__name__)
SERVICE = "inference.GRPCInferenceService"

_M = TypeVar("_M", bound=Message)
_HEADERS = frozenset({"authorization", "x-request-id", "x-request-timeout-ms", "traceparent"})
_NO_HEADERS: Mapping[str, str] = {}
if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[bytes, bytes]
    _Call = Callable[[bytes, _Context, Mapping[str, str]], Awaitable[Message]]


class OipServicer:
    """``handlers`` maps the service's methods to handlers over bytes."""

    def __init__(self, plane: DataPlane, *, version: str, stream_window: int) -> None:
        self._plane, self._version, self._stream_window = plane, version, stream_window

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """One handler per method, for ``grpc.method_handlers_generic_handler(SERVICE, ...)``."""
        unary: dict[str, _Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._repository_index,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._guarded(call)) for name, call in unary.items()}
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._model_infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._model_stream_infer)
        return handlers

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _server_live(self, data: bytes, context: _Context, headers: Mapping[str, str]) -> Message:
        return pb.ServerLiveResponse(live=self._plane.is_live)

    async def _server_ready(self, data: bytes, context: _Context, headers: Mapping[str, str]) -> Message:
        return pb.ServerReadyResponse(ready=self._plane.is_ready)

    async def _model_ready(self, data: bytes, context: _Context, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        message = _parse(pb.ModelReadyRequest, data)
        state = self._plane.model_state(message.name, message.version)
        return pb.ModelReadyResponse(ready=state.state == "READY")

    async def _server_metadata(self, data: bytes, context: _Context, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    async def _model_metadata(self, data: bytes, context: _Context, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        message = _parse(pb.ModelMetadataRequest, data)
        return codec.encode_metadata(self._plane.metadata(message.name, message.version))

    async def _repository_index(self, data: bytes, context: _Context, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        message = _parse(pb.RepositoryIndexRequest, data)
        response = pb.RepositoryIndexResponse()
        for state in self._plane.index():
            if state.state == "READY" or not message.ready:
                response.models.add(name=state.model, version=state.version, state=state.state, reason=state.reason)
        return response

    async def _model_infer(self, data: bytes, context: _Context) -> bytes:
        headers = _headers(context)
        try:
            if headers:
                context.set_trailing_metadata(_echoed(headers))
            answer = await self._infer(data, headers, timeout_s=_earliest(context.time_remaining(), headers))
            return answer.SerializeToString()
        except Exception as error:
            return await _fail(context, error, headers)

    async def _model_stream_infer(self, requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        """Requests of one stream run at the same time, up to a bound; answers leave in the order of the requests."""
        headers = _headers(context)
        pending: asyncio.Queue[asyncio.Task[Message] | None] = asyncio.Queue(self._stream_window)
        reader = asyncio.create_task(self._read_stream(requests, headers, pending, context), name="stream reader")
        try:
            while (task := await pending.get()) is not None:
                yield (await task).SerializeToString()
            await reader  # what stopped the reading, if it was an error
        finally:
            reader.cancel()
            while not pending.empty():
                left = pending.get_nowait()
                if left is not None:
                    left.cancel()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _read_stream(
        self,
        requests: AsyncIterator[bytes],
        headers: Mapping[str, str],
        pending: asyncio.Queue[asyncio.Task[Message] | None],
        context: _Context,
    ) -> None:
        try:
            async for data in requests:
                task = asyncio.create_task(self._stream_infer(data, headers, context))
                try:
                    await pending.put(task)
                except asyncio.CancelledError:
                    task.cancel()
                    raise
        finally:
            # the writer may be gone already (cancelled); otherwise it is waiting, and there is room soon
            if not pending.full():
                pending.put_nowait(None)
            else:
                await pending.put(None)

    async def _stream_infer(self, data: bytes, headers: Mapping[str, str], context: _Context) -> Message:
        """One request of a stream: its error is a message, because the stream goes on."""
        try:
            answer = await self._infer(data, headers, timeout_s=_earliest(context.time_remaining(), headers))
        except PenstockError as error:
            failed = pb.ModelStreamInferResponse(error_message=error.message)
            failed.infer_response.id = _id_of(data)
            return failed
        except Exception as error:  # a defect of ours ends one answer, not the stream
            _log_failure(error, headers)
            return pb.ModelStreamInferResponse(error_message="the server failed; its log says why")
        answer.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def _infer(
        self, data: bytes, headers: Mapping[str, str], *, timeout_s: float | None
    ) -> pb.ModelInferResponse:
        plane = self._plane
        tenant = plane.authenticate(headers.get("authorization", ""))
        message = _parse(pb.ModelInferRequest, data)
        with plane.admit(tenant, message.model_name, message.model_version) as ticket:
            decoded = codec.decode_request(message)
            return codec.encode_response(await plane.infer(ticket, decoded.request, timeout_s), decoded)

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        self._plane.authenticate(headers.get("authorization", ""))

    def _guarded(self, call: _Call) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: _Context) -> bytes:
            headers = _headers(context)
            try:
                context.set_trailing_metadata(_echoed(headers))
                return (await call(data, context, headers)).SerializeToString()
            except Exception as error:
                return await _fail(context, error, headers)

        return handle


def _headers(context: _Context) -> Mapping[str, str]:
    found = _NO_HEADERS
    for name, value in context.invocation_metadata() or ():
        if name in _HEADERS and isinstance(value, str):
            found = {**found, name: value}
    return found


def _echoed(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    given = headers.get("x-request-id")
    return () if given is None else (("x-request-id", request_id(given)),)


async def _fail(context: _Context, error: Exception, headers: Mapping[str, str]) -> NoReturn:
    """End the call; a defect of ours is logged and leaves without its traceback."""
    ours = error if isinstance(error, PenstockError) else Internal("the server failed; its log says why")
    if isinstance(ours, Internal):
        _log_failure(error, headers)
    await context.abort(grpc_status(ours), ours.message, trailing_metadata(ours) + _echoed(headers))
    raise AssertionError("context.abort returned")


def _earliest(remaining_s: float | None, headers: Mapping[str, str]) -> float | None:
    """The call's deadline and ``x-request-timeout-ms``, whichever is first."""
    text = headers.get("x-request-timeout-ms")
    if text is None:
        return remaining_s
    try:
        asked_s = float(text) / 1000
    except ValueError:
        asked_s = math.nan
    if math.isnan(asked_s):
        field = "x-request-timeout-ms"
        raise InvalidInput(f"{field}: {text[:40]!r} is not a number of milliseconds", field=field)
    return asked_s if remaining_s is None else min(asked_s, remaining_s)


def _parse(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"message: not a {kind.DESCRIPTOR.name}: {error}", field="message") from error


def _id_of(data: bytes) -> str:
    try:
        return pb.ModelInferRequest.FromString(data).id
    except DecodeError:
        return ""


def _log_failure(error: Exception, headers: Mapping[str, str]) -> None:
    trace = parse_traceparent(headers.get("traceparent", ""))
    log(
        _log,
        logging.ERROR,
        "request failed",
        exc_info=error,
        request_id=headers.get("x-request-id", ""),
        trace_id=trace.trace_id if trace else "",
    )
