"""The native server (pygrpc-native): HTTP/2 and gRPC in Rust, outside the GIL; a burst of calls arrives in one turn.

Serves methods with one request and one answer. All others go through a grpcio server on a private unix socket behind
it, which the library forwards to. The library's own asyncio server is not used: it makes a task, a context and several
look-ups of each call that ours does without. Where it may listen, for all that it cannot do, is
``cloud_core.policy.listeners``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from cloud_core.api.rpc.listening.grpcio_listener import address_of, cannot_listen, server_of
from cloud_core.api.rpc.listening.methods import Service, Trailers, Unary
from cloud_core.api.rpc.listening.settings import GrpcSettings
from penstock.errors import TooLarge
from penstock.process.telemetry import log
from penstock.rpc.status import OUR_PUSHBACK, PUSHBACK, grpc_status, trailing_metadata

_log = logging.getLogger(__name__)
_PREFIX, _BEHIND = "penstock-grpc-", "behind"
_LEFT_AFTER_S = 60.0
_BURST = 256
_TURNS = 4  # in which a burst becomes a batch, runs and is answered, where that is short
_IO_THREADS = 1  # carries more than Python takes; on two cores a second one costs a call a sixth more processor time
_FLUSH_S = 0.05  # what was answered last is on its way through the library's own queue when it is told to close


class Ended(Exception):
    """A call that was ended with a status."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Trailers) -> None:
        self.code, self.details, self.trailers = code, details, trailers


class NativeCall:
    """One call, as its method sees it."""

    __slots__ = ("_metadata", "_remaining_s", "trailers")

    def __init__(self, metadata: Iterable[tuple[str, str | bytes]], remaining_s: float | None) -> None:
        self._metadata, self._remaining_s = metadata, remaining_s
        self.trailers: Trailers = ()

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return self._metadata

    def time_remaining(self) -> float | None:
        """Return what was left when the call came."""
        return self._remaining_s

    def set_trailing_metadata(self, trailing_metadata: Trailers) -> None:
        self.trailers = trailing_metadata

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> NoReturn:
        raise Ended(code, details, trailing_metadata or self.trailers)


class NativeListener:
    """One port. ``port`` is the bound one."""

    def __init__(self, services: Sequence[Service], settings: GrpcSettings) -> None:
        """Bind; :meth:`start` takes calls. Must be made in a running event loop.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._max_message_bytes = settings.max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._taken = threading.Lock()  # held while the loop has not taken what was handed over
        self._taken.acquire()
        methods = {f"/{service.name}/{name}": call for service in services for name, call in service.unary.items()}
        self._methods: tuple[Unary, ...] = tuple(methods.values())
        self._behind = server_of([Service(name=one.name, streams=one.streams) for one in services], settings)
        _remove_left()
        self._directory = Path(tempfile.mkdtemp(prefix=_PREFIX))  # of this user alone
        try:
            self._front = NativeGrpcFront(
                address_of(settings.host, settings.port),
                [(path, False) for path in methods],
                call_details=True,
                metrics=True,
                keepalive_time_ms=int(settings.keepalive_s * 1000),
                keepalive_timeout_ms=int(settings.keepalive_timeout_s * 1000),
                keepalive_permit_without_calls=False,
                io_threads=_IO_THREADS,
                max_concurrent_streams=settings.max_concurrent_streams,
                max_metadata_size=settings.max_metadata_bytes,
            )
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise cannot_listen(settings.host, settings.port) from error
        self.port = self._front.bound_port

    async def start(self) -> None:
        """Take calls from now on."""
        path = str(self._directory / _BEHIND)
        self._behind.add_insecure_port(f"unix:{path}")
        await self._behind.start()
        self._front.set_fallback(path)
        self._front.start()
        threading.Thread(target=self._receive, name="native gRPC", daemon=True).start()

    async def stop(self, timeout_s: float) -> None:
        """Give open calls ``timeout_s``, cut the rest, and close."""
        behind = asyncio.ensure_future(self._behind.stop(timeout_s))
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=timeout_s)
        for call_id, task in tuple(self._tasks.items()):
            self._front.fail(call_id, grpc.StatusCode.UNAVAILABLE.value[0], "the server is shutting down")
            task.cancel()
        await behind
        await asyncio.sleep(_FLUSH_S)
        await self._loop.run_in_executor(None, self._front.close)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _receive(self) -> None:
        """Wait for calls in a thread of its own, and hand over what came together.

        While the loop works on a burst, calls gather in the library: received one by one they would each cost a fight
        for the interpreter's lock, and a batch of their own.
        """
        receive, hand_over = self._front.recv_batch_details, self._loop.call_soon_threadsafe
        while (events := receive(_BURST)) is not None:
            try:
                hand_over(self._take, events)
            except RuntimeError:  # the loop was closed without stop()
                self._front.close()
                return
            self._taken.acquire()

    def _take(self, events: Sequence[tuple[Any, ...]]) -> None:
        create_task, tasks, methods, run = self._loop.create_task, self._tasks, self._methods, self._run
        for kind, call_id, method_id, data, _, details in events:
            if kind == EVENT_CANCEL:
                task = tasks.pop(call_id, None)
                if task is not None:  # the client went away: its work leaves every queue
                    task.cancel()
            else:
                tasks[call_id] = create_task(run(methods[method_id], call_id, data, details))
        self._loop.call_soon(self._let_go_on, _TURNS)

    def _let_go_on(self, turns: int) -> None:
        """Let the thread receive again: when the burst is answered, or after so many turns of the loop."""
        if turns and self._tasks:
            self._loop.call_soon(self._let_go_on, turns - 1)
        else:
            self._taken.release()

    async def _run(self, method: Unary, call_id: int, data: bytes, details: tuple[Any, str, float | None]) -> None:
        call = NativeCall(details[0], details[2])
        try:
            if len(data) > self._max_message_bytes:
                raise _too_large("Received", len(data), self._max_message_bytes)
            answer = await method(data, call)
            if len(answer) > self._max_message_bytes:
                raise _too_large("Sent", len(answer), self._max_message_bytes)
            if call.trailers:
                self._front.respond(call_id, answer, None, call.trailers)
            else:
                self._front.respond(call_id, answer)
        except Ended as end:
            self._front.fail(call_id, end.code.value[0], end.details, [_allowed(one) for one in end.trailers])
        except Exception as error:
            log(_log, logging.ERROR, "a method failed in a way that should not happen", exc_info=error)
            self._front.fail(call_id, grpc.StatusCode.INTERNAL.value[0], "the server failed; its log says why")
        finally:
            self._tasks.pop(call_id, None)  # not there any more when the client went away


def _remove_left() -> None:
    """Remove what cores that were killed have left: sockets on which nobody listens any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_BEHIND}"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            if time.time() - path.stat().st_mtime < _LEFT_AFTER_S:
                continue  # of a core that is about to listen, perhaps
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                shutil.rmtree(path.parent, ignore_errors=True)


def _allowed(trailer: tuple[str, str | bytes]) -> tuple[str, str | bytes]:
    """Return a trailer under a name that the library sends: none of gRPC's own."""
    return (OUR_PUSHBACK, trailer[1]) if trailer[0] == PUSHBACK else trailer


def _too_large(what: str, size: int, limit: int) -> Ended:
    """Return the end of a call, in the words of grpcio."""
    error = TooLarge(f"SERVER: {what} message larger than max ({size} vs. {limit})", limit_bytes=limit)
    return Ended(grpc_status(error), error.message, trailing_metadata(error))
