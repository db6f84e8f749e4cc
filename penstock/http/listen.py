"""Sockets to listen on: TCP, and unix sockets that only their owner and group can open. Binds, and serves nothing."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from penstock.errors import ConfigError, StorageError

SOCKET_MODE = 0o660


def parse_address(text: str, *, setting: str) -> tuple[str, int]:
    """Host and port of ``host:port`` (IPv6 in brackets; port 0 takes a free one).

    Raises:
        ConfigError: it is not one; ``setting`` names where it stands.
    """
    host, separator, port = text.rpartition(":")
    host = host.strip("[]")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"{setting}: {text!r} is not host:port")
    return host, int(port)


def bind_tcp(host: str, port: int, *, setting: str) -> socket.socket:
    """Bind a socket. ``setting`` is where the address was chosen, for the reader of the error.

    Raises:
        ConfigError: the port is in use, or the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"it is in use; stop what uses it, or choose another with {setting}"
        else:
            why = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {why}") from error
    bound.setblocking(False)
    return bound


def address_of(bound: socket.socket) -> str:
    """Return a socket's ``host:port`` as clients write it."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_unix(path: Path) -> tuple[socket.socket, int]:
    """Bind with the final mode before anybody can connect; a socket that nobody serves any more is replaced.

    Returns:
        The bound socket and the inode of its file, which tells it from one that somebody else puts there later.

    Raises:
        ConfigError: somebody serves there, or what is there is no socket. StorageError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(str(path))
            os.chmod(path, SOCKET_MODE)  # nobody can connect before listen()
            inode = path.stat().st_ino
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise StorageError(f"socket: cannot create {path}: {error.strerror or error}") from error
    bound.setblocking(False)
    return bound, inode


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"socket: {path} exists and is not a socket; choose another path with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # left behind by an agent that was killed
            return
    raise ConfigError(f"socket: another agent serves {path}; stop it, or choose another path with --socket")
