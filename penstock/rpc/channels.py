"""gRPC channels with our limits and keepalive, sync and asyncio, and the OIP stub over them."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal, overload

import grpc

from penstock.errors import InvalidInput
from penstock.rpc.pb import oip_pb2_grpc
from penstock.wire.addresses import Target, parse_target
from penstock.wire.proxies import proxy_for
from penstock.wire.tls import Tls, from_environment, pem

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_FOREIGN_KEEPALIVE_S = 300.0
_Options = list[tuple[str, Any]]


def channel_options(
    *, max_message_bytes: int = MAX_MESSAGE_BYTES, keepalive_s: float = _FOREIGN_KEEPALIVE_S
) -> _Options:
    """Return options of a client's channel. Servers other than ours answer pings more often than every 300 s with
    GOAWAY; whoever asks for them more often pings between calls too, or a link without a call is never looked at.
    """
    timeout_ms = int(min(10.0, keepalive_s) * 1000)
    between_calls = [
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # a minute otherwise, whatever keepalive_timeout_ms says
    ]
    return [
        *(between_calls if keepalive_s < _FOREIGN_KEEPALIVE_S else ()),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),  # also TCP_USER_TIMEOUT: a link cut without a word is noticed
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
    target: str | Target,
    *,
    aio: Literal[False],
    tls: Tls | None = ...,
    max_message_bytes: int = ...,
    keepalive_s: float = ...,
) -> grpc.Channel: ...
@overload
def open_channel(
    target: str | Target,
    *,
    aio: Literal[True],
    tls: Tls | None = ...,
    max_message_bytes: int = ...,
    keepalive_s: float = ...,
) -> grpc.aio.Channel: ...


def open_channel(
    target: str | Target,
    *,
    aio: bool,
    tls: Tls | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    keepalive_s: float = _FOREIGN_KEEPALIVE_S,
) -> grpc.Channel | grpc.aio.Channel:
    """Open a channel to ``grpc://host:port`` or, over TLS, ``grpcs://host``. Connects with the first call, not here.

    Args:
        tls: which authorities to trust; None for what the environment says.

    Raises:
        InvalidInput: not such a target, or a variable names something that is no proxy. ConfigError: a file that
            ``tls`` names is none of its kind.
    """
    parsed = parse_target(target) if isinstance(target, str) else target
    if not parsed.is_grpc:
        raise InvalidInput(f"target: {parsed} is not a grpc:// or grpcs:// target", field="target")
    options = channel_options(max_message_bytes=max_message_bytes, keepalive_s=keepalive_s)
    proxy = proxy_for(parsed.scheme, parsed.host, parsed.port, os.environ)
    # grpc has a rule of its own, by which loopback goes through a proxy too
    options.append(("grpc.enable_http_proxy", 0) if proxy is None else ("grpc.http_proxy", proxy.url))
    if parsed.is_secure:
        credentials = grpc.ssl_channel_credentials(*pem(tls or from_environment()))
        if aio:
            return grpc.aio.secure_channel(parsed.address, credentials, options=options)
        return grpc.secure_channel(parsed.address, credentials, options=options)
    if aio:
        return grpc.aio.insecure_channel(parsed.address, options=options)
    return grpc.insecure_channel(parsed.address, options=options)


class RenewedChannel:
    """An asyncio channel that is replaced after calls in a row that ran into their deadline.

    grpc keeps a connection whose calls time out: it cannot tell a slow server from a path that swallows everything (a
    forgotten NAT entry, a replaced proxy). Ask for :attr:`channel` at each call, and hand it to :meth:`record` after.
    """

    def __init__(
        self, target: str, *, keepalive_s: float, renew_after: int, grace_s: float, tls: Tls | None = None
    ) -> None:
        """
        Args:
            renew_after: deadlines in a row.
            grace_s: what calls on the old channel get before they are cut.
            tls: which authorities to trust; None for what the environment says.

        Raises:
            InvalidInput: ``target`` is neither ``grpc://host:port`` nor ``grpcs://host``. ConfigError: a file of
                ``tls``.
        """
        self._target = parse_target(target)
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._renew_after = renew_after
        self._grace_s = grace_s
        self._late = 0
        self._closing: set[asyncio.Task[None]] = set()
        self.channel = self._open()

    def record(self, channel: grpc.aio.Channel, *, is_late: bool) -> bool:
        """Note how a call on ``channel`` ended, and say whether the channel was replaced for it."""
        if channel is not self.channel:  # of a call from before: says nothing about this one
            return False
        self._late = self._late + 1 if is_late else 0
        if self._late < self._renew_after:
            return False
        self._late = 0
        self.channel = self._open()
        task = asyncio.get_running_loop().create_task(channel.close(self._grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return True

    async def close(self) -> None:
        """Close the channel, and what is left of older ones; calls that are under way fail."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.channel.close(grace=None)

    def _open(self) -> grpc.aio.Channel:
        return open_channel(self._target, aio=True, tls=self._tls, keepalive_s=self._keepalive_s)


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """Call metadata that carries a token; () without one."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def oip_stub(channel: grpc.Channel | grpc.aio.Channel) -> oip_pb2_grpc.GRPCInferenceServiceStub:
    """Return the inference service's stub; its methods are awaitable when the channel is asyncio's."""
    return oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
