"""OIP over gRPC for both clients: encode, call, decode, and errors of gRPC turned into ours."""

from __future__ import annotations

import os
from typing import Any

import grpc

from penstock.errors import Conflict, Internal, NotFound
from penstock.rpc import codec
from penstock.rpc.channels import bearer, oip_stub, open_channel
from penstock.rpc.metadata import Metadata
from penstock.rpc.pb import oip_pb2
from penstock.rpc.status import error_from_rpc
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
        if self._pid != os.getpid():
            # the threads that would move its bytes are in the parent: a call would wait out its deadline
            raise Internal(
                "this Client was made before a fork, and gRPC's connections stay with the parent; make the Client in "
                "the child, or use http:// or unix://"
            )
        try:
            return getattr(self._stub, method)(message, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        except ValueError as error:  # what grpc raises for a channel that another thread has closed
            raise Conflict(f"the client was closed meanwhile: {error}") from None


class AioRpcTransport:
    """For the asyncio client. Must be made in a running event loop."""

    def __init__(self, target: Target, *, token: str | None = None, tls: Tls | None = None) -> None:
        self._channel = open_channel(target, aio=True, tls=tls)
        self._stub: Any = oip_stub(self._channel)  # generated, without types
        self._credential = bearer(token)

    async def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        metadata = _with_id(self._credential, request.id)
        return codec.decode_response(await self._call("ModelInfer", codec.encode_request(request), timeout_s, metadata))

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


def _with_id(metadata: Metadata, request_id: str) -> Metadata:
    return (*metadata, *headers_of(client_context(request_id)).items())
