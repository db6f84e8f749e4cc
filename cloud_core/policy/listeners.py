"""Decides which implementation listens for gRPC, and says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Server = Literal["native", "grpcio"]
LARGEST_MESSAGE_BYTES = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the choice depends on beside the setting.

    Attributes:
        is_installed: pygrpc-native.
        has_tls: the port has certificates.
        is_loopback: only this machine reaches the port.
        max_connections: as set; 0 for any number.
        can_reserve: this process may reserve (not fill) what a message can announce, :data:`LARGEST_MESSAGE_BYTES`; the
            native library does, and the process ends where it may not.
        has_directory: temporary files can be made: the socket of the server behind the native one is such a file.
    """

    is_installed: bool
    has_tls: bool
    is_loopback: bool
    max_connections: int
    can_reserve: bool
    has_directory: bool


def choose_server(asked: Literal["auto", "native", "grpcio"], around: Surroundings) -> tuple[Server, str]:
    """Return the server, and what speaks for it.

    Raises:
        ValueError: native was asked for, and it cannot do what it would have to; the message says what.
    """
    if asked == "grpcio":
        return "grpcio", "as set"
    missing = _missing(around)
    if asked == "native":
        if missing:
            raise ValueError(missing)
        return "native", "as set"
    if missing:
        return "grpcio", missing
    if not around.is_loopback:
        return "grpcio", "the native server reads a message of any size before it is refused, so not for a network"
    return "native", "installed, and reached by this machine alone"


def _missing(around: Surroundings) -> str:
    if not around.is_installed:
        return "pygrpc-native is not installed (pip install 'penstock[native]')"
    if around.has_tls:
        return "the native server has no TLS"
    if not around.can_reserve:
        return "the native server reserves the 4 GiB that a message may announce, which this process must not"
    if not around.has_directory:
        return "no directory for temporary files can be written, and the native server needs one; set TMPDIR to one"
    if around.max_connections:
        return "the native server does not count connections"
    return ""
