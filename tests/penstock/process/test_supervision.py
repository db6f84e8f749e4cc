from __future__ import annotations

import asyncio
import os
import signal

import pytest

from penstock.errors import Internal
from penstock.process.supervision import stop_on_signals, supervise


async def _forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def test_stop_cancels_and_awaits_every_task() -> None:
    ended: list[str] = []
    stop = asyncio.Event()
    asyncio.get_running_loop().call_soon(stop.set)
    await supervise({"a": _forever(ended, "a"), "b": _forever(ended, "b")}, stop)
    assert sorted(ended) == ["a", "b"]


async def test_a_task_that_raises_ends_the_others_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def boom() -> None:
        raise ValueError("disk on fire")

    ended: list[str] = []
    with pytest.raises(Internal, match="task 'loop' died: ValueError: disk on fire") as raised:
        await supervise({"calm": _forever(ended, "calm"), "loop": boom()}, asyncio.Event())
    assert ended == ["calm"]
    assert isinstance(raised.value.__cause__, ValueError)
    assert "task failed" in caplog.text


async def test_a_task_that_returns_unasked_is_a_defect_too() -> None:
    async def done() -> None:
        return None

    with pytest.raises(Internal, match="task 'short' died: returned"):
        await supervise({"short": done()}, asyncio.Event())


async def test_cancelling_the_supervisor_ends_the_tasks() -> None:
    ended: list[str] = []
    task = asyncio.create_task(supervise({"a": _forever(ended, "a")}, asyncio.Event()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["a"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_first_signal_stops_and_releases_the_handlers(number: signal.Signals) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 5)
        assert not asyncio.get_running_loop().remove_signal_handler(number)
