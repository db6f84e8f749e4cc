"""Ends from any thread what another thread waits for: connecting, a TLS handshake, a silent server, a pause.

A thread cannot be stopped, but its socket can be shut down: what waits on it returns at once. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from penstock.errors import Cancelled


class Interrupt:
    """One thread's way out. Only :meth:`cancel` may be called by other threads; it cannot be taken back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cancelled = threading.Event()
        # A copy of the descriptor, closed only under the lock: the socket's own number may be closed by its thread, and
        # be given to another socket, just as we shut it down; and a socket that TLS wraps loses its number
        self._watched: socket.socket | None = None

    def cancel(self) -> None:
        """End what the other thread waits for now, and everything that it would wait for later."""
        with self._lock:
            self._is_cancelled.set()
            if self._watched is not None:
                with contextlib.suppress(OSError):  # not connected any more: nothing waits on it
                    self._watched.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise if :meth:`cancel` was called.

        Raises:
            Cancelled: :meth:`cancel` was called.
        """
        if self._is_cancelled.is_set():
            raise Cancelled("the transfer was cancelled")

    def pause(self, delay_s: float) -> None:
        """Sleep for ``delay_s``, or until :meth:`cancel` is called.

        Raises:
            Cancelled: before or while it slept.
        """
        self._is_cancelled.wait(delay_s)
        self.check()

    def watch(self, sock: socket.socket) -> None:
        """Take ``sock`` as what the thread waits on from now on, in place of the socket before.

        Raises:
            Cancelled: there is nothing to wait for any more.
        """
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            before, self._watched = self._watched, copy
            if before is not None:
                before.close()
        self.check()

    def release(self) -> None:
        """Let go of the socket, which stays connected for its peer as long as a copy of it is open."""
        with self._lock:
            if self._watched is not None:
                self._watched.close()
                self._watched = None

    def connect(self, host: str, port: int, *, timeout_s: float) -> socket.socket:
        """Open a TCP connection to the first address of ``host`` that answers within ``timeout_s``.

        Looking the name up is the operating system's, and cannot be interrupted.

        Raises:
            OSError: no address answered; the last one's error. Cancelled: before or while it connected.
        """
        last = OSError(f"{host} has no address")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # a label that is too long, say, in an address that a registry redirects to
            raise OSError(f"{host[:80]!r} is no name of a host") from error
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                self.watch(sock)
                sock.settimeout(timeout_s)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.check()
            except OSError as error:
                sock.close()
                self.check()
                last = error
            except Cancelled:
                sock.close()
                raise
            else:
                return sock
        raise last
