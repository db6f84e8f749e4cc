"""HTTP connections of the standard library, over TCP, TLS or a unix socket, and one question on one of them.

For programs that ask once and for transports that keep connections; needs no HTTP library.
"""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

from penstock.errors import InvalidInput, Unavailable
from penstock.rest.exchange import Answer
from penstock.rest.mistaken import advice

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


def ask(server: str, method: str, path: str, *, token: str = "", timeout_s: float = 5.0) -> Answer:
    """Ask ``http://``, ``https://`` or ``unix:///path/to/socket`` once, on a connection of its own.

    Raises:
        InvalidInput: ``server`` is none of these. Unavailable: nothing answers there, for the reason in the message.
    """
    connection = _connection(server, timeout_s)
    prefix = "" if isinstance(connection, UnixConnection) else urlsplit(server).path.rstrip("/")
    try:
        connection.request(method, prefix + path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read(_MAX_BODY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or advice(str(error)[:200]) or str(error) or type(error).__name__
        raise Unavailable(said) from error
    finally:
        connection.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=headers, body=body)


def _connection(server: str, timeout_s: float) -> http.client.HTTPConnection:
    if server.startswith("unix://"):
        return UnixConnection(server.removeprefix("unix://"), timeout_s)
    try:
        url = urlsplit(server)
        if url.scheme == "http" and url.hostname:
            return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout_s)
        if url.scheme == "https" and url.hostname:
            return http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout_s)
    except ValueError:  # of a port that is none
        pass
    raise InvalidInput(f"{server!r} is not a URL such as http://127.0.0.1:8000", field="target")
