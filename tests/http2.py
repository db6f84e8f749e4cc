"""gRPC calls in bare HTTP/2 frames, for what no client library lets through."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

import hpack

from tests.waiting import PATIENCE_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4


def call(
    address: tuple[str, int], path: str, message: bytes, headers: Mapping[str, str], *, framed: bool = False
) -> tuple[int, str]:
    """Make a unary call; return its ``grpc-status`` and ``grpc-message``.

    Args:
        framed: ``message`` has the flag and the length before it, as is sent; or else it gets them.
    """
    body = message if framed else struct.pack(">BI", 0, len(message)) + message
    with connect(address) as connection:
        connection.sendall(request(1, path, body, headers, framed=True))
        found = trailers(connection)
    assert "grpc-status" in found, found
    return int(found["grpc-status"]), found.get("grpc-message", "")


def connect(address: tuple[str, int], *, window: int | None = None) -> socket.socket:
    """Open a connection and send its preface; ``window``: bytes of each answer that the server may send."""
    settings = b"" if window is None else struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
    connection = socket.create_connection(address, timeout=PATIENCE_S)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
    return connection


def request(
    stream: int,
    path: str,
    message: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    is_whole: bool = True,
    framed: bool = False,
) -> bytes:
    """Return the frames of a call; one that is not whole has its flag and length in ``message``, and goes on."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
    fields |= {"content-type": "application/grpc", **(headers or {})}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())  # literals, not indexed
    body = message if framed or not is_whole else struct.pack(">BI", 0, len(message)) + message
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)] or [b""]
    last = len(pieces) - 1
    data = [frame(DATA, _END_STREAM if is_whole and n == last else 0, stream, one) for n, one in enumerate(pieces)]
    return b"".join([frame(HEADERS, _END_HEADERS, stream, block), *data])


def trailers(connection: socket.socket) -> dict[str, str]:
    """Read frames until the end of stream 1; return what its headers and trailers hold."""
    found: dict[str, str] = {}
    decoder = hpack.Decoder()
    with connection.makefile("rb") as reader:
        while head := reader.read(9):
            size, kind, flags, stream = (
                int.from_bytes(head[:3], "big"),
                head[3],
                head[4],
                int.from_bytes(head[5:], "big"),
            )
            payload = reader.read(size)
            if kind == SETTINGS and not flags & _ACK:
                connection.sendall(frame(SETTINGS, _ACK, 0))
            if kind == HEADERS:
                found.update(decoder.decode(payload))
            if kind == GOAWAY or (stream == 1 and (kind == RST_STREAM or flags & _END_STREAM)):
                break
    return found


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data
