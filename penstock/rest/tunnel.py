"""Asks an HTTP proxy for a tunnel to a server (RFC 9110, 9.3.6), on a socket that is connected to the proxy."""

from __future__ import annotations

import re
import socket

from penstock.wire.proxies import Proxy

_MAX_HEAD_BYTES = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([\x20-\x7e]*))?\r?\n")


def open_tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Make ``sock`` a connection to ``host``.

    Raises:
        OSError: the proxy refuses, or what is there is no proxy.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    head = b""
    # byte by byte: what comes after the head belongs to the server behind, and to TLS
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        byte = sock.recv(1)
        if not byte or len(head) >= _MAX_HEAD_BYTES:
            raise OSError(f"the proxy at {proxy.address} gave no answer to CONNECT")
        head += byte
    status = _STATUS.match(head)
    if status is None or not 200 <= int(status[1]) < 300:
        said = b" ".join(filter(None, status.groups())).decode() if status else "something that is no HTTP"
        raise OSError(f"the proxy at {proxy.address} refused a tunnel to {address}: {said}")
