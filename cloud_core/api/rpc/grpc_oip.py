"""The Open Inference Protocol over gRPC: decode, call the data plane, encode.

Requests arrive as bytes and are parsed here, so that a caller without a credential costs no parsing. Decides nothing
about admission; see ``serving.dataplane``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NoReturn, TypeVar

import grpc
import msgspec
from google.protobuf.message import DecodeError, Message

from cloud_core.api.rpc.grpc_extensions import Extension, ExtensionCalls, parse
from cloud_core.api.rpc.grpc_texts import Say, answer_text, is_text
from cloud_core.api.rpc.listening.methods import Call, Service, Unary
from cloud_core.serving.dataplane import SERVER_NAME, DataPlane
from cloud_core.serving.texts import TextPlane
from penstock.errors import DeadlineExceeded, InvalidInput
from penstock.http.extensions import Extensions
from penstock.policy.access import Action
from penstock.process.telemetry import refusal_of
from penstock.rpc import codec
from penstock.rpc.codec import DecodedRequest
from penstock.rpc.known_heads import KnownHeads
from penstock.rpc.metadata import callers_headers, echoed
from penstock.rpc.pb import oip_pb2 as pb
from penstock.rpc.status import grpc_status, trailing_metadata
from penstock.wire.classification import classified
from penstock.wire.context import AUTHORIZATION, RequestContext, context_of, timeout_s_of
from penstock.wire.inference import EXTENSIONS, MODEL_REPOSITORY, InferResponse, noted

_log = logging.getLogger(__name__)
SERVICE = "inference.GRPCInferenceService"

T = TypeVar("T")
_Out = asyncio.Queue[Message | None]
_Pending = asyncio.Queue[asyncio.Task[Message | None] | None]
_Call = Callable[[bytes, Mapping[str, str]], Awaitable[Message]]


class OipServicer:
    """The inference service over bytes."""

    def __init__(
        self,
        plane: DataPlane,
        texts: TextPlane,
        extensions: Extensions | None = None,
        *,
        version: str,
        stream_window: int,
        unread_s: float = 30.0,
        more: Mapping[str, _Call] | None = None,
    ) -> None:
        """Must be made in a running event loop.

        Args:
            extensions: what of the server clients may use and change; None for as little as can be.
            more: methods that others answer.
            unread_s: how long a text waits for a client that does not read, before it is given up.
        """
        self._plane, self._texts, self._version = plane, texts, version
        self._stream_window, self._unread_s = stream_window, unread_s
        self._takes_certificates = plane.takes_certificates
        extensions = extensions or Extensions()
        self._regions, self._names = extensions.regions, (*EXTENSIONS, MODEL_REPOSITORY, *extensions.names)
        self._extensions = ExtensionCalls(plane, extensions)
        self._heads = KnownHeads()
        self._more = more or {}
        self._now = asyncio.get_running_loop().time

    def service(self) -> Service:
        """Return the service; a method of one request and one answer is one row."""
        guarded: dict[str, _Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._repository_index,
            **self._more,
        }
        extended = {name: self._extended(may, call) for name, (may, call) in self._extensions.calls().items()}
        return Service(
            name=SERVICE,
            unary={
                "ModelInfer": self._model_infer,
                **{name: self._guarded(call) for name, call in (guarded | extended).items()},
            },
            streams={"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._model_stream_infer)},
        )

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _server_live(self, data: bytes, headers: Mapping[str, str]) -> Message:
        return pb.ServerLiveResponse(live=self._plane.is_live)

    async def _server_ready(self, data: bytes, headers: Mapping[str, str]) -> Message:
        return pb.ServerReadyResponse(ready=self._plane.is_ready)

    async def _model_ready(self, data: bytes, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        message = parse(pb.ModelReadyRequest, data)
        state = self._plane.model_state(message.name, message.version)
        return pb.ModelReadyResponse(ready=state.state == "READY")

    async def _server_metadata(self, data: bytes, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=self._names)

    async def _model_metadata(self, data: bytes, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        message = parse(pb.ModelMetadataRequest, data)
        return codec.encode_metadata(self._plane.metadata(message.name, message.version))

    async def _repository_index(self, data: bytes, headers: Mapping[str, str]) -> Message:
        self._authenticate(headers)
        message = parse(pb.RepositoryIndexRequest, data)
        response = pb.RepositoryIndexResponse()
        for state in self._plane.index():
            if state.state == "READY" or not message.ready:
                response.models.add(name=state.model, version=state.version, state=state.state, reason=noted(state))
        return response

    async def _model_infer(self, data: bytes, rpc: Call) -> bytes:
        headers, context = self._begin(rpc)
        try:
            if context.request_id:
                rpc.set_trailing_metadata(echoed(context))
            answer = await self._infer(data, headers, context, self._heads.encode)
            return answer if isinstance(answer, bytes) else answer.SerializeToString()
        except Exception as error:
            return await _fail(rpc, error, context)

    async def _model_stream_infer(self, requests: AsyncIterator[bytes], rpc: Call) -> AsyncIterator[bytes]:
        """Requests of one stream run at the same time, up to a bound. Answers with arrays leave in the order of the
        requests; the parts of texts leave as they are made, those of several texts between each other."""
        out = _Out(self._stream_window)
        pending: _Pending = asyncio.Queue(self._stream_window)
        tasks = [
            asyncio.create_task(self._read_stream(requests, pending, out, rpc), name="stream reader"),
            asyncio.create_task(_in_order(pending, out), name="stream order"),
        ]
        try:
            while (message := await out.get()) is not None:
                yield message.SerializeToString()
            await asyncio.gather(*tasks)  # what stopped the reading, if it was an error
        finally:
            for task in tasks:
                task.cancel()
            while not pending.empty():
                left = pending.get_nowait()
                if left is not None:
                    left.cancel()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _read_stream(self, requests: AsyncIterator[bytes], pending: _Pending, out: _Out, rpc: Call) -> None:
        try:
            async for data in requests:
                task = asyncio.create_task(self._stream_infer(data, out, rpc))
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

    async def _stream_infer(self, data: bytes, out: _Out, rpc: Call) -> Message | None:
        """Answer one request of a stream, with limits of its own; its error is a message, so the stream goes on.

        Returns:
            What leaves in the order of the requests; None where a text was sent in parts, with its end.
        """
        headers, context = self._begin(rpc)
        has_parts = False

        async def say(part: pb.ModelInferResponse) -> None:
            nonlocal has_parts
            has_parts = True
            part.parameters["triton_final_response"].bool_param = False
            try:
                async with asyncio.timeout(self._unread_s):
                    await out.put(pb.ModelStreamInferResponse(infer_response=part))
            except TimeoutError:  # it held a place among those in flight all the while
                raise DeadlineExceeded(f"the client did not read for {self._unread_s:g} s") from None

        try:
            answer = await self._infer(data, headers, context, codec.encode_response, say)
            answer.parameters["triton_final_response"].bool_param = True
            message = pb.ModelStreamInferResponse(infer_response=answer)
        except Exception as error:  # a defect of ours ends one answer, not the stream
            ours = refusal_of(_log, error, context)
            message = pb.ModelStreamInferResponse(error_message=ours.message)
            message.infer_response.id = _id_of(data)
            for name, value in trailing_metadata(ours):  # a stream that goes on has no trailers for one of its answers
                message.infer_response.parameters[name].string_param = value
        if not has_parts:
            return message
        await out.put(message)
        return None

    async def _infer(
        self,
        data: bytes,
        headers: Mapping[str, str],
        context: RequestContext,
        encode: Callable[[InferResponse, DecodedRequest], T],
        say: Say | None = None,
    ) -> T | pb.ModelInferResponse:
        plane = self._plane
        tenant = plane.authenticate(headers.get(AUTHORIZATION, ""))
        if tenant:
            context = msgspec.structs.replace(context, tenant=tenant)
        known = self._heads.find(data)
        if known is not None:
            model, version = known.template.model, known.template.version
        else:
            message = parse(pb.ModelInferRequest, data)
            model, version = message.model_name, message.model_version
        with plane.admit(context, model, version, len(data)) as ticket:
            context = context.within(timeout_s_of(headers))
            if known is not None:
                decoded = known.decode(data)
            else:
                decoded = codec.decode_request(message, self._regions)
                self._heads.learn(data, message, decoded)
            if is_text(ticket):
                _check_text(decoded)
                return await answer_text(self._texts, ticket, context, decoded, say)
            response = await plane.infer(ticket, context, decoded.request)
            if decoded.classes is not None:
                response = classified(response, decoded.classes, plane.metadata(model, version))
            return encode(response, decoded)

    def _begin(self, rpc: Call) -> tuple[Mapping[str, str], RequestContext]:
        headers = callers_headers(rpc, takes_certificates=self._takes_certificates)
        return headers, context_of(headers, "grpc").begin(self._now()).within(rpc.time_remaining())

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        self._plane.authenticate(headers.get(AUTHORIZATION, ""))

    def _extended(self, may: Action, call: Extension) -> _Call:
        async def answer(data: bytes, headers: Mapping[str, str]) -> Message:
            self._plane.authenticate(headers.get(AUTHORIZATION, ""), may)
            return call(data)

        return answer

    def _guarded(self, call: _Call) -> Unary:
        async def handle(data: bytes, rpc: Call) -> bytes:
            headers, context = self._begin(rpc)
            try:
                rpc.set_trailing_metadata(echoed(context))
                return (await call(data, headers)).SerializeToString()
            except Exception as error:
                return await _fail(rpc, error, context)

        return handle


async def _in_order(pending: _Pending, out: _Out) -> None:
    """Send what leaves in the order of the requests, and end the stream."""
    while (task := await pending.get()) is not None:
        message = await task
        if message is not None:
            await out.put(message)
    await out.put(None)


async def _fail(rpc: Call, error: Exception, context: RequestContext) -> NoReturn:
    """End the call; a defect of ours is logged and leaves without its traceback."""
    ours = refusal_of(_log, error, context)
    await rpc.abort(grpc_status(ours), ours.message, trailing_metadata(ours) + echoed(context))
    raise AssertionError("abort returned")


def _check_text(decoded: codec.DecodedRequest) -> None:
    if decoded.classes is not None or decoded.placements is not None:
        raise InvalidInput("outputs: a text has no classes, and travels in the answer", field="outputs")


def _id_of(data: bytes) -> str:
    try:
        return pb.ModelInferRequest.FromString(data).id
    except DecodeError:
        return ""
