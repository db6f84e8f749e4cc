"""Supervise the named tasks of a process: run them until a signal says stop, or until one of them dies.

Decides nothing about restarts: a task that ends without being asked to is a defect, and the process that loses one
should say which and end, so that its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

from penstock.errors import Internal, PenstockError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def supervise(coroutines: Mapping[str, Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """Run named coroutines until ``stop`` is set, or one of them ends; the others are cancelled and awaited then.

    Raises:
        Internal: a task raised or returned before ``stop`` was set; the message names it, the cause is its error.
    """
    tasks = {asyncio.create_task(coroutine, name=name): name for name, coroutine in coroutines.items()}
    waiter = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
        dead = [task for task in tasks if task.done()]
    finally:
        await _cancel([waiter, *tasks])
    if dead and not stop.is_set():
        raise _died(dead[0], tasks[dead[0]])


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on the first SIGTERM or SIGINT; a second one does what it did before: a hung stop can be ended."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def on_signal() -> None:
        stop.set()
        release()

    def release() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)  # as process 1 the system's own action would be to ignore it

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        release()


@contextlib.asynccontextmanager
async def reloaded_on_hangup(reload: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Call ``reload`` at each SIGHUP while the block runs, one after the other. What it refuses with it has said."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    before = signal.getsignal(signal.SIGHUP)

    async def run() -> None:
        while True:
            await asked.wait()
            asked.clear()
            with contextlib.suppress(PenstockError):
                await reload()

    task = asyncio.create_task(run(), name="reload")
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
        await _cancel([task])


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log(_log, logging.ERROR, "task failed", exc_info=error, task=task.get_name())


def _died(task: asyncio.Task[None], name: str) -> Internal:
    cause = None if task.cancelled() else task.exception()
    why = "was cancelled" if task.cancelled() else f"{type(cause).__name__}: {cause}" if cause else "returned"
    error = Internal(f"task {name!r} died: {why}")
    error.__cause__ = cause
    return error
