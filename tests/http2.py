"""One gRPC call in bare HTTP/2 frames, for what no client library lets through."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

import hpack

from tests.waiting import PATIENCE_S

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4


def call(address: tuple[str, int], path: str, message: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
    """Make a unary call; return its ``grpc-status`` and ``grpc-message``."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
    fields |= {"content-type": "application/grpc", **headers}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())  # literals, not indexed
    body = struct.pack(">BI", 0, len(message)) + message
    frames = _frame(_SETTINGS, 0, 0) + _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(_DATA, _END_STREAM, 1, body)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(_PREFACE + frames)
        found = _trailers(connection)
    assert "grpc-status" in found, found
    return int(found["grpc-status"]), found.get("grpc-message", "")


def _trailers(connection: socket.socket) -> dict[str, str]:
    """Read frames until the stream's end; return what its headers and trailers hold."""
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
            if kind == _SETTINGS and not flags & _ACK:
                connection.sendall(_frame(_SETTINGS, _ACK, 0))
            if kind == _HEADERS:
                found.update(decoder.decode(payload))
            if kind == _GOAWAY or (stream == 1 and (kind == _RST_STREAM or flags & _END_STREAM)):
                break
    return found


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data
