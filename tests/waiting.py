"""Waiting for what other processes, threads and sockets are about to do.

A test waits for the condition, never for a time: it goes on as soon as the condition holds, and gives up only after so
long that even a machine with several test suites on its two cores would have been done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

PATIENCE_S = 100.0


def wait_until(what: str, holds: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
    """Poll until ``holds()`` is true; between two looks it rests as long as a look takes: what it waits for needs the
    processor, too.

    Raises:
        AssertionError: it was not in time; the message is ``what``.
    """
    give_up = time.monotonic() + patience_s
    looked_at = time.monotonic()
    while not holds():
        now = time.monotonic()
        assert now < give_up, f"{what}: not within {patience_s:g} s"
        time.sleep(min(max(0.02, now - looked_at), 0.25))
        looked_at = time.monotonic()


async def until(what: str, holds: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
    """Let the event loop go on until ``holds()`` is true; sleeps in between, so that others get the processor.

    Raises:
        AssertionError: it was not in time; the message is ``what``.
    """
    give_up = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < give_up, f"{what}: not within {patience_s:g} s"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine in the background for as long as the block takes, and cancel it then."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
