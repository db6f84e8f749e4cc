"""Settings of the gRPC listener."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]


class GrpcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where gRPC listens (port 0: a free one), and how much one client may ask of the listener.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        server: what speaks HTTP/2: ``native`` (pygrpc-native, several times faster), ``grpcio``, or ``auto``, which
            is native where that is installed, there is no TLS, and only this machine can reach the port (a proxy on it,
            too), and grpcio elsewhere. The native one reads a message whole before it refuses it for its size.
        max_message_bytes: of one request or answer.
        max_concurrent_streams: calls that one connection may have open; a client waits with more.
        max_connections: that are open at a time; more are closed as they come. 0 for as many as files may be open.
            Only grpcio's server can count them: with a limit, ``auto`` is grpcio.
        max_metadata_bytes: of one call's metadata.
        keepalive_s: a connection with open calls that has been silent for so long is pinged, and closed when its
            client does not answer.
        keepalive_timeout_s: how long that answer may take.
        stream_window: requests of one ModelStreamInfer stream that are worked on at a time; more wait on the wire.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8001
    server: Literal["auto", "native", "grpcio"] = "auto"
    max_message_bytes: _Count = 64 * 1024 * 1024
    max_concurrent_streams: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    max_connections: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_metadata_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1024 * 1024)] = 16 * 1024
    keepalive_s: Annotated[float, msgspec.Meta(ge=1.0, le=86_400.0)] = 60.0
    keepalive_timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=600.0)] = 20.0
    stream_window: _Count = 64
