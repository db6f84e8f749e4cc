"""gRPC channels with our limits and keepalive, sync and asyncio, and the OIP stub over them."""

from __future__ import annotations

from typing import Any, Literal, overload

import grpc

from penstock.errors import InvalidInput
from penstock.rpc.pb import oip_pb2_grpc
from penstock.wire.addresses import Target, parse_target

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_Options = list[tuple[str, Any]]


def channel_options(*, max_message_bytes: int = MAX_MESSAGE_BYTES, keepalive_s: float = 300.0) -> _Options:
    """Return options of a client's channel. Servers other than ours answer pings more often than every 300 s with
    GOAWAY.
    """
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),  # also TCP_USER_TIMEOUT: a link cut without a word is noticed
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),  # a core that comes back is found within seconds, not minutes
        ("grpc.use_local_subchannel_pool", 1),  # a channel's back-off is its own, not that of an older one
    ]


def server_options(*, max_message_bytes: int = MAX_MESSAGE_BYTES) -> _Options:
    """Return options of our servers: the same limits, and patience with agents that ping every 10 s or more."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),  # a port in use is an error, not a silent second server
    ]


@overload
def open_channel(
    target: str | Target, *, aio: Literal[False], max_message_bytes: int = ..., keepalive_s: float = ...
) -> grpc.Channel: ...
@overload
def open_channel(
    target: str | Target, *, aio: Literal[True], max_message_bytes: int = ..., keepalive_s: float = ...
) -> grpc.aio.Channel: ...


def open_channel(
    target: str | Target, *, aio: bool, max_message_bytes: int = MAX_MESSAGE_BYTES, keepalive_s: float = 300.0
) -> grpc.Channel | grpc.aio.Channel:
    """Open a plaintext channel to ``grpc://host:port``. Connects with the first call, not here.

    Raises:
        InvalidInput: not a ``grpc://`` target.
    """
    parsed = parse_target(target) if isinstance(target, str) else target
    if parsed.scheme != "grpc":
        raise InvalidInput(f"target: {parsed} is not a grpc:// target", field="target")
    options = channel_options(max_message_bytes=max_message_bytes, keepalive_s=keepalive_s)
    if aio:
        return grpc.aio.insecure_channel(parsed.address, options=options)
    return grpc.insecure_channel(parsed.address, options=options)


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """Call metadata that carries a token; () without one."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def oip_stub(channel: grpc.Channel | grpc.aio.Channel) -> oip_pb2_grpc.GRPCInferenceServiceStub:
    """Return the inference service's stub; its methods are awaitable when the channel is asyncio's."""
    return oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
