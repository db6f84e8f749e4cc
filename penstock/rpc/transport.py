"""OIP over gRPC for both clients: encode, call, decode, and errors of gRPC turned into ours."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from penstock.errors import Conflict, Internal, NotFound
from penstock.rpc import codec
from penstock.rpc.channels import bearer, oip_stub, open_channel
from penstock.rpc.metadata import Metadata
from penstock.rpc.pb import oip_pb2
from penstock.rpc.status import error_from_rpc, error_from_stream
from penstock.wire.addresses import Target
from penstock.wire.context import client_context, headers_of
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata
from penstock.wire.tls import Tls


class RpcTransport:
    """For the synchronous client. Thread-safe, as the channel is. Only for the process that made it."""

    def __init__(self, target: Target, *, token: str | None = None, tls: Tls | None = None) -> None:
        self._channel = open_channel(target, aio=False, tls=tls)
        self._stub: Any = oip_stub(self._channel)  # generated, without types
        self._credential = bearer(token)
        self._pid = os.getpid()

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        metadata = _with_id(self._credential, request.id)
        return codec.decode_response(self._call("ModelInfer", codec.encode_request(request), timeout_s, metadata))

    def stream(self, request: InferRequest, timeout_s: float) -> Generator[InferResponse, None, None]:
        """Ask one request whose answer comes in parts, and wait for the first; closing what is returned, once begun,
        ends the call."""
        self._check_process()
        metadata = _with_id(self._credential, request.id)
        with _our_errors():
            parts = self._stub.ModelStreamInfer(
                iter([codec.encode_request(request)]), timeout=timeout_s, metadata=metadata
            )
        try:
            first = self._part(parts)
        except BaseException:
            parts.cancel()
            raise
        return self._parts(parts, first)

    def _parts(self, parts: Any, first: InferResponse | None) -> Generator[InferResponse, None, None]:
        try:
            while first is not None:
                yield first
                first = self._part(parts)
        finally:
            parts.cancel()

    def _part(self, parts: Any) -> InferResponse | None:
        with _our_errors():
            message = next(parts, None)
        return None if message is None else _part_of(message)

    def metadata(self, model: str, version: str, timeout_s: float) -> ModelMetadata:
        message = oip_pb2.ModelMetadataRequest(name=model, version=version)
        return codec.decode_metadata(self._call("ModelMetadata", message, timeout_s, self._credential))

    def is_live(self, timeout_s: float) -> bool:
        return bool(self._call("ServerLive", oip_pb2.ServerLiveRequest(), timeout_s, self._credential).live)

    def is_ready(self, timeout_s: float) -> bool:
        return bool(self._call("ServerReady", oip_pb2.ServerReadyRequest(), timeout_s, self._credential).ready)

    def model_ready(self, model: str, version: str, timeout_s: float) -> bool:
        message = oip_pb2.ModelReadyRequest(name=model, version=version)
        try:
            return bool(self._call("ModelReady", message, timeout_s, self._credential).ready)
        except NotFound:
            return False

    def close(self) -> None:
        if self._pid == os.getpid():  # after a fork the channel is the parent's
            self._channel.close()

    def _call(self, method: str, message: Any, timeout_s: float, metadata: Metadata) -> Any:
        self._check_process()
        with _our_errors():
            return getattr(self._stub, method)(message, timeout=timeout_s, metadata=metadata)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            # the threads that would move its bytes are in the parent: a call would wait out its deadline
            raise Internal(
                "this Client was made before a fork, and gRPC's connections stay with the parent; make the Client in "
                "the child, or use http:// or unix://"
            )


class AioRpcTransport:
    """For the asyncio client. Must be made in a running event loop."""

    def __init__(self, target: Target, *, token: str | None = None, tls: Tls | None = None) -> None:
        self._channel = open_channel(target, aio=True, tls=tls)
        self._stub: Any = oip_stub(self._channel)  # generated, without types
        self._credential = bearer(token)

    async def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        metadata = _with_id(self._credential, request.id)
        return codec.decode_response(await self._call("ModelInfer", codec.encode_request(request), timeout_s, metadata))

    async def stream(self, request: InferRequest, timeout_s: float) -> AsyncGenerator[InferResponse, None]:
        """Ask one request whose answer comes in parts, and wait for the first; closing what is returned, once begun,
        ends the call."""
        metadata = _with_id(self._credential, request.id)
        parts = self._stub.ModelStreamInfer(iter([codec.encode_request(request)]), timeout=timeout_s, metadata=metadata)
        responses = aiter(parts)
        try:
            first = await self._part(responses)
        except BaseException:
            parts.cancel()
            raise
        return self._parts(parts, responses, first)

    async def _parts(
        self, call: Any, responses: Any, first: InferResponse | None
    ) -> AsyncGenerator[InferResponse, None]:
        try:
            while first is not None:
                yield first
                first = await self._part(responses)
        finally:
            call.cancel()

    async def _part(self, parts: Any) -> InferResponse | None:
        try:
            message = await anext(parts, None)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        return None if message is None else _part_of(message)

    async def metadata(self, model: str, version: str, timeout_s: float) -> ModelMetadata:
        message = oip_pb2.ModelMetadataRequest(name=model, version=version)
        return codec.decode_metadata(await self._call("ModelMetadata", message, timeout_s, self._credential))

    async def is_live(self, timeout_s: float) -> bool:
        return bool((await self._call("ServerLive", oip_pb2.ServerLiveRequest(), timeout_s, self._credential)).live)

    async def is_ready(self, timeout_s: float) -> bool:
        answer = await self._call("ServerReady", oip_pb2.ServerReadyRequest(), timeout_s, self._credential)
        return bool(answer.ready)

    async def model_ready(self, model: str, version: str, timeout_s: float) -> bool:
        message = oip_pb2.ModelReadyRequest(name=model, version=version)
        try:
            return bool((await self._call("ModelReady", message, timeout_s, self._credential)).ready)
        except NotFound:
            return False

    async def close(self) -> None:
        await self._channel.close(None)

    async def _call(self, method: str, message: Any, timeout_s: float, metadata: Metadata) -> Any:
        try:
            return await getattr(self._stub, method)(message, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None
    except ValueError as error:  # what grpc raises for a channel that another thread has closed
        raise Conflict(f"the client was closed meanwhile: {error}") from None


def _part_of(message: Any) -> InferResponse:
    """Read one response of a stream.

    Raises:
        PenstockError: it says what went wrong with the request.
    """
    if message.error_message:
        hints = {name: value.string_param for name, value in message.infer_response.parameters.items()}
        raise error_from_stream(message.error_message, hints)
    return codec.decode_response(message.infer_response)


def _with_id(metadata: Metadata, request_id: str) -> Metadata:
    return (*metadata, *headers_of(client_context(request_id)).items())
