"""Where a server is: ``grpc://host:port``, ``http://host:port`` or ``unix:///path`` (HTTP over a unix socket).

``unix://agent.sock`` is a path from the current directory, as every other path a user types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, Unavailable

_FORMS = "grpc://host:port, http://host:port or unix:///path/to/socket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parsed target. ``host`` and ``port`` are empty for unix; ``path`` is the socket, empty otherwise."""

    scheme: Literal["grpc", "http", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def address(self) -> str:
        """Return ``host:port`` (IPv6 in brackets) or the socket's path."""
        if self.scheme == "unix":
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


def parse_target(text: str) -> Target:
    """Parse a target.

    Raises:
        InvalidInput: not one of the three forms.
    """
    scheme, separator, rest = text.partition("://")
    rest = rest.removesuffix("/") if scheme != "unix" else rest
    if scheme == "unix" and rest and not rest.endswith("/") and "\0" not in rest:
        return Target(scheme="unix", path=rest)
    if separator and scheme in ("grpc", "http"):
        host, _, port = rest.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        is_host = host and "/" not in host and "@" not in host and not host.isspace() and (bracketed or ":" not in host)
        if is_host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return Target(scheme="grpc" if scheme == "grpc" else "http", host=host, port=int(port))
    raise InvalidInput(f"target: {text!r} is not one of {_FORMS}", field="target")


def located(error: PenstockError, target: Target | str) -> PenstockError:
    """Add the target to an error's message where the message alone would not say which server was not reached."""
    where = str(target)
    if isinstance(error, Unavailable | DeadlineExceeded) and where not in error.message:
        error.message = f"{where}: {error.message}"
        error.args = (error.message,)
    return error
