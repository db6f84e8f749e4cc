"""What moves the bytes of both clients: one port for each, and what is behind it by the scheme of a target.

What a target needs is imported when it is opened: grpcio for ``grpc://``, aiohttp for an asyncio client's HTTP.
"""

from __future__ import annotations

from typing import Protocol

from penstock.wire.addresses import Target
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata
from penstock.wire.tls import Tls


class Transport(Protocol):
    """OIP over one wire. Raises our errors only."""

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse: ...
    def metadata(self, model: str, version: str, timeout_s: float) -> ModelMetadata: ...
    def is_live(self, timeout_s: float) -> bool: ...
    def is_ready(self, timeout_s: float) -> bool: ...
    def model_ready(self, model: str, version: str, timeout_s: float) -> bool: ...
    def close(self) -> None: ...


class AioTransport(Protocol):
    """OIP over one wire. Raises our errors only."""

    async def infer(self, request: InferRequest, timeout_s: float) -> InferResponse: ...
    async def metadata(self, model: str, version: str, timeout_s: float) -> ModelMetadata: ...
    async def is_live(self, timeout_s: float) -> bool: ...
    async def is_ready(self, timeout_s: float) -> bool: ...
    async def model_ready(self, model: str, version: str, timeout_s: float) -> bool: ...
    async def close(self) -> None: ...


def open_transport(target: Target, token: str | None, tls: Tls | None) -> Transport:
    """Open what a target needs.

    Raises:
        MissingExtra: a library that it needs is not installed. ConfigError: a file of ``tls`` is none of its kind.
    """
    # imported here, so that a client for one kind of target does not pay for the others
    if target.is_grpc:
        from penstock.rpc.transport import RpcTransport

        return RpcTransport(target, token=token, tls=tls)
    from penstock.rest.transport import RestTransport

    return RestTransport(target, token=token, tls=tls)


def open_aio_transport(target: Target, token: str | None, tls: Tls | None) -> AioTransport:
    """Open what a target needs, in the running event loop. Raises as :func:`open_transport`."""
    # imported here, so that a client for one kind of target does not pay for the others
    if target.is_grpc:
        from penstock.rpc.transport import AioRpcTransport

        return AioRpcTransport(target, token=token, tls=tls)
    from penstock.rest.aio_transport import AioRestTransport

    return AioRestTransport(target, token=token, tls=tls)
