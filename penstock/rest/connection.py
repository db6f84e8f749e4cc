"""HTTP connections of the standard library, over TCP, TLS or a unix socket, and one question on one of them.

For programs that ask once and for transports that keep connections; needs no HTTP library.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl

from penstock.errors import InvalidInput, Unavailable
from penstock.rest.exchange import Answer
from penstock.rest.mistaken import advice
from penstock.rest.tunnel import open_tunnel
from penstock.wire.addresses import Target, parse_target
from penstock.wire.proxies import Proxy, proxy_for
from penstock.wire.tls import Tls, context, from_environment, trouble

_MAX_BODY_BYTES = 4 * 1024 * 1024


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ProxiedConnection(http.client.HTTPConnection):
    """HTTP to a server through a proxy, which is told the whole address with each request."""

    def __init__(self, host: str, port: int, proxy: Proxy, timeout: float | None = None) -> None:
        super().__init__(host, port, timeout=timeout)
        self._proxy = proxy

    def connect(self) -> None:
        self.sock = socket.create_connection((self._proxy.host, self._proxy.port), self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        super().putrequest(method, f"http://{host}:{self.port}{url}", skip_host, skip_accept_encoding)
        for name, value in self._proxy.headers.items():
            self.putheader(name, value)


class TunnelledConnection(http.client.HTTPConnection):
    """HTTP over TLS to a server, through a tunnel that a proxy opens."""

    default_port = http.client.HTTPS_PORT  # the one that the Host header leaves out

    def __init__(self, host: str, port: int, proxy: Proxy, tls: ssl.SSLContext, timeout: float | None = None) -> None:
        super().__init__(host, port, timeout=timeout)
        self._proxy, self._tls = proxy, tls

    def connect(self) -> None:
        sock = socket.create_connection((self._proxy.host, self._proxy.port), self.timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_tunnel(sock, self._proxy, self.host, self.port)
            self.sock = self._tls.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise


def connection_to(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, timeout_s: float | None = None
) -> http.client.HTTPConnection:
    """Make a connection, through a proxy where the environment names one; it connects with its first request.

    Raises:
        InvalidInput: a variable names something that is no proxy.
    """
    proxy = proxy_for("http" if tls is None else "https", host, port, os.environ)
    if tls is None:
        if proxy is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return ProxiedConnection(host, port, proxy, timeout_s)
    if proxy is None:
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls)
    return TunnelledConnection(host, port, proxy, tls, timeout_s)


def ask(
    server: str,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    token: str = "",
    tls: Tls | None = None,
    timeout_s: float = 5.0,
) -> Answer:
    """Ask ``http://``, ``https://`` or ``unix:///path/to/socket`` once, on a connection of its own.

    Raises:
        InvalidInput: ``server`` is none of these. Unavailable: nothing answers there, for the reason in the message.
    """
    target = _target(server)
    connection = _connection(target, tls, timeout_s)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, target.prefix + path, body, headers)
        response = connection.getresponse()
        answered = response.read(_MAX_BODY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        said = trouble(str(error)) or advice(str(error)[:200])
        said = said or getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unavailable(said) from error
    finally:
        connection.close()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=found, body=answered)


def _target(server: str) -> Target:
    try:
        target = parse_target(server)
        if not target.is_grpc:
            return target
    except InvalidInput:
        pass
    raise InvalidInput(f"{server!r} is not a URL such as http://127.0.0.1:8000", field="target")


def _connection(target: Target, tls: Tls | None, timeout_s: float) -> http.client.HTTPConnection:
    if target.scheme == "unix":
        return UnixConnection(target.path, timeout_s)
    trust = context(tls or from_environment()) if target.is_secure else None
    return connection_to(target.host, target.port, tls=trust, timeout_s=timeout_s)
