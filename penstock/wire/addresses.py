"""Where a server is: ``grpc://``, ``grpcs://``, ``http://``, ``https://``, or ``unix:///path`` (HTTP in this machine).

An HTTP address may have a path, which all of the server's own paths then begin with: what a proxy in front of it asks
for. ``unix://agent.sock`` is a path from the current directory, as every other path a user types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, Unavailable

Scheme = Literal["grpc", "grpcs", "http", "https", "unix"]
_SCHEMES: frozenset[str] = frozenset(get_args(Scheme))
_DEFAULT_PORTS = {"http": 80, "https": 443, "grpcs": 443}
_PREFIX = re.compile(r"(?:/[\w.~!$&'()*+,;=:@%-]+)*", re.ASCII)
_FORMS = "grpc://host:port, http://host:port or unix:///path/to/socket (over TLS: grpcs://host, https://host)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parsed target.

    Attributes:
        host: "" for unix.
        port: 0 for unix.
        path: the socket for unix; for HTTP what every path begins with, "" or ``/like/this``.
    """

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def address(self) -> str:
        """Return ``host:port`` (IPv6 in brackets) or the socket's path."""
        if self.scheme == "unix":
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_grpc(self) -> bool:
        """Say whether gRPC is spoken there, and not HTTP/1.1."""
        return self.scheme in ("grpc", "grpcs")

    @property
    def is_secure(self) -> bool:
        """Say whether it is asked over TLS."""
        return self.scheme in ("grpcs", "https")

    @property
    def prefix(self) -> str:
        """Return what every path of an HTTP request begins with; "" or ``/like/this``."""
        return "" if self.scheme == "unix" else self.path

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.prefix}"


def parse_target(text: str) -> Target:
    """Parse a target. TLS without a port is at 443, HTTP without one at 80.

    Raises:
        InvalidInput: none of the forms.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "unix" and rest and not rest.endswith("/") and "\0" not in rest:
        return Target(scheme="unix", path=rest)
    made = _over_tcp(scheme, rest) if scheme in _SCHEMES and scheme != "unix" else None
    if made is None:
        raise InvalidInput(f"target: {text!r} is not one of {_FORMS}", field="target")
    return made


def located(error: PenstockError, target: Target | str) -> PenstockError:
    """Add the target to an error's message where the message alone would not say which server was not reached."""
    where = str(target)
    if isinstance(error, Unavailable | DeadlineExceeded) and where not in error.message:
        error.message = f"{where}: {error.message}"
        error.args = (error.message,)
    return error


def _over_tcp(scheme: str, rest: str) -> Target | None:
    address, slash, path = rest.partition("/")
    prefix = f"{slash}{path}".rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or port.endswith("]"):  # no port, or the colons of an IPv6 address
        host, port = address, str(_DEFAULT_PORTS.get(scheme, 0))
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    is_host = host and not re.search(r"[\s@/?#\[\]]", host) and (is_bracketed or ":" not in host)
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    is_prefix = _PREFIX.fullmatch(prefix) if scheme in ("http", "https") else not prefix
    if not (is_host and is_port and is_prefix):
        return None
    return Target(scheme=scheme, host=host, port=int(port), path=prefix)  # type: ignore[arg-type]  # one of the schemes
