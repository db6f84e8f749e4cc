"""What is said to a proxy for a tunnel, and what becomes of its answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from penstock.rest.tunnel import open_tunnel
from penstock.wire.proxies import Proxy

PROXY = Proxy(host="proxy.test", port=3128, userinfo="me:p%40ss")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(("host", "said"), [("core.test", b"core.test:443"), ("fd00::1", b"[fd00::1]:443")])
def test_the_server_is_named_and_what_it_says_is_left_alone(
    ends: tuple[socket.socket, socket.socket], host: str, said: bytes
) -> None:
    ours, theirs = ends
    theirs.sendall(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nhello of the server")
    open_tunnel(ours, PROXY, host, 443)
    lines = theirs.recv(4096).split(b"\r\n")
    assert lines == [
        b"CONNECT %b HTTP/1.1" % said, b"Host: %b" % said, b"Proxy-Authorization: Basic bWU6cEBzcw==", b"", b"",
    ]  # fmt: skip
    assert ours.recv(4096) == b"hello of the server"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 403 Filtered\r\n\r\n", r"proxy\.test:3128 refused a tunnel to core\.test:443: 403 Filtered"),
        (b"HTTP/1.1 407\r\n\r\n", "refused a tunnel to core.test:443: 407"),
        (b"\x15\x03\x01\x00\x02\x02F\r\n\r\n", "something that is no HTTP"),
        (b"HTTP/1.1 200 OK\r\n", "gave no answer to CONNECT"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000, "gave no answer to CONNECT"),
    ],
)
def test_what_is_no_tunnel_is_an_error_that_says_who_refused(
    ends: tuple[socket.socket, socket.socket], answer: bytes, says: str
) -> None:
    ours, theirs = ends
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError, match=says):
        open_tunnel(ours, PROXY, "core.test", 443)
