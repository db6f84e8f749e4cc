"""Servers that we start: real processes that behave as vLLM was seen to, and what may happen to each of them."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from penstock.errors import InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.hosting.generation.managed.generator import ManagedGenerator
from penstock.hosting.generation.managed.keeper import BoundedLog, before
from tests.penstock.hosting.generation.letters import asked
from tests.penstock.hosting.generation.managed.stand_in_model import log_of, managed
from tests.waiting import PATIENCE_S, until, wait_until

HANG, DIE, FAIL = chr(900), chr(901), chr(902)
Start = Callable[..., Awaitable[ManagedGenerator]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    made: list[ManagedGenerator] = []

    async def begin(how: dict[str, Any] | None = None, **changes: Any) -> ManagedGenerator:
        made.append(managed(tmp_path, how, **changes))
        await made[-1].start()
        return made[-1]

    yield begin
    for generator in made:
        await generator.close(0.0)


def soon() -> float:
    return asyncio.get_running_loop().time() + PATIENCE_S


async def whole(generator: ManagedGenerator, request: Any) -> str:
    return "".join([event.text async for event in generator.generate(request, deadline=soon())])


async def error_of(generator: ManagedGenerator, request: Any) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await whole(generator, request)
    return caught.value


async def is_well_again(generator: ManagedGenerator) -> None:
    await until("well again", lambda: generator.health().is_well)
    assert await whole(generator, asked("ok", new=2)) == "ok"


def processes(generator: ManagedGenerator) -> list[psutil.Process]:
    """Keeper, server, rank."""
    assert generator.pid is not None
    keeper = psutil.Process(generator.pid)
    return [keeper, *keeper.children(recursive=True)]


def are_gone(members: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members)


@pytest.mark.parametrize("victim", ["keeper", "server"])
async def test_a_kill_costs_what_runs_and_leaves_no_process_behind(start: Start, victim: str) -> None:
    generator = await start()
    members = processes(generator)
    assert len(members) == 3
    running = asyncio.create_task(error_of(generator, asked(new=90_000)))
    await until("tokens", lambda: generator.outstanding == 1)
    members[["keeper", "server"].index(victim)].kill()
    error = await running
    assert isinstance(error, Unavailable)
    assert "killed by SIGKILL" in error.message
    assert error.retry_after_s is not None
    await is_well_again(generator)
    await until("no process is left", lambda: are_gone(members))
    assert (generator.counts().crashes, generator.counts().starts) == (1, 2)


async def test_a_server_that_ends_says_why_in_its_last_error(start: Start) -> None:
    generator = await start()
    error = await error_of(generator, asked(FAIL))
    assert "RuntimeError: the engine core has died" in error.message
    assert "server.log" in error.message
    await is_well_again(generator)


@pytest.mark.parametrize("how", ["stopped", "hung"])
async def test_a_server_that_makes_no_tokens_is_killed_and_started_again(start: Start, how: str) -> None:
    generator = await start(hang_s=1.0)
    members = processes(generator)
    running = asyncio.create_task(error_of(generator, asked(HANG if how == "hung" else "x", new=90_000)))
    await until("asked", lambda: generator.outstanding == 1)
    if how == "stopped":
        members[1].suspend()
    error = await running
    assert isinstance(error, Unavailable)
    assert "sent no token for 1 s" in error.message
    await is_well_again(generator)
    await until("no process is left", lambda: are_gone(members))
    assert (generator.counts().hangs, generator.counts().crashes) == (1, 0)


async def test_an_idle_server_that_hangs_is_found_before_anybody_asks(start: Start) -> None:
    generator = await start(hang_s=1.0, idle_probe_s=0.1)
    processes(generator)[1].suspend()
    await until("found", lambda: generator.counts().hangs == 1)
    await is_well_again(generator)


async def test_a_server_that_is_told_to_end_by_others_ends_its_streams_first_and_comes_back(start: Start) -> None:
    generator = await start()
    async with aclosing(generator.generate(asked("hello", new=500), deadline=soon())) as stream:
        text = (await anext(stream)).text
        os.killpg(processes(generator)[0].pid, signal.SIGTERM)  # as a service manager does
        text += "".join([event.text async for event in stream])
    assert text == "hello" * 100
    await until("started again", lambda: generator.counts().starts == 2)
    await is_well_again(generator)


async def test_a_drain_ends_the_server_in_order_when_everything_is_answered(start: Start, tmp_path: Path) -> None:
    generator = await start()
    members = processes(generator)
    stream = generator.generate(asked("hello", new=500), deadline=soon())
    text = (await anext(stream)).text
    closing = asyncio.create_task(generator.close(PATIENCE_S))
    await until("closing", lambda: not generator.health().is_well)
    with pytest.raises(Unavailable):
        await whole(generator, asked())
    text += "".join([event.text async for event in stream])
    await closing
    assert text == "hello" * 100
    assert log_of(tmp_path).endswith("ended in order\n")
    await until("no process is left", lambda: are_gone(members))


async def test_closing_kills_a_server_that_does_not_listen(start: Start) -> None:
    generator = await start(exit_s=0.2)
    members = processes(generator)
    members[1].suspend()
    await generator.close(0.0)
    await until("no process is left", lambda: are_gone(members))


async def test_more_than_there_is_room_for_is_refused_before_the_server_is_asked(start: Start) -> None:
    generator = await start(max_sequences=1, max_waiting=1)
    results = await asyncio.gather(*(whole(generator, asked("ab", new=50)) for _ in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert (len(refused), results.count("ab" * 25)) == (3, 2)
    assert all(error.retry_after_s for error in refused)


async def test_a_server_that_does_not_start_says_why_at_once(start: Start) -> None:
    with pytest.raises(
        Unavailable, match="ValidationError: 1 validation error .* 9 heads cannot be divided by 2.*server.log"
    ):
        await start({"fails": "9 heads cannot be divided by 2"})
    with pytest.raises(Unavailable, match=r"no token within 0\.8 s"):
        await start({"hangs": True}, start_timeout_s=0.8)


async def test_a_server_that_listens_and_dies_at_its_first_request_was_never_ready(start: Start) -> None:
    """As vLLM 0.32 does with two stages that are not compiled."""
    with pytest.raises(Unavailable, match="ended before its first token: exit status 1; .* 'cmpl-1'"):
        await start({"fails_at_first": "'cmpl-1'"})


async def test_restarts_are_bounded_and_the_reason_stays(start: Start, tmp_path: Path) -> None:
    generator = await start(max_restarts=1, slow_restart_s=0)
    (tmp_path / "model" / "stand_in.json").write_text('{"fails": "no such weights"}')
    processes(generator)[1].kill()
    await until("the end of it", lambda: "in a row" in generator.health().why)
    assert "no such weights" in generator.health().why
    assert (await error_of(generator, asked())).retry_after_s is None, "nobody restarts it"


async def test_it_has_a_home_of_its_own_and_none_of_our_secrets(start: Start, tmp_path: Path) -> None:
    generator = await start()
    _, server, _ = processes(generator)
    told = server.environ()
    home = str(tmp_path / "vllm" / "letters")
    assert (told["HOME"], told["VLLM_CACHE_ROOT"]) == (home, f"{home}/cache")
    assert {told[name] for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")} == {"1"}
    assert not [name for name in told if name.startswith(("PENSTOCK_", "XDG_"))]
    (listens,) = [Path(word) for word in server.cmdline() if word.endswith("/s")]
    assert stat.S_IMODE(listens.parent.stat().st_mode) == 0o700
    await generator.close(0.0)
    assert not listens.parent.exists()


async def test_what_it_prints_is_kept_within_bounds(start: Start, tmp_path: Path) -> None:
    await start({"says_bytes": 300_000}, max_log_bytes=65_536)
    sizes = [path.stat().st_size for path in (tmp_path / "vllm" / "letters").glob("server.log*")]
    assert sum(sizes) <= 65_536
    assert "listening" in log_of(tmp_path)


def test_a_log_is_never_larger_than_it_may_be(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", 100)
    for size in (10, 30, 30, 200, 1):
        log.write(b"x" * size)
        files = [path for path in (tmp_path / "log", before(tmp_path / "log")) if path.exists()]
        assert sum(path.stat().st_size for path in files) <= 100
    log.close()
    assert (tmp_path / "log").read_bytes() == b"x"


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.penstock.hosting.generation.managed.stand_in_model import managed

async def main():
    generator = managed(Path(sys.argv[1]))
    await generator.start()
    print(generator.pid, flush=True)
    await asyncio.sleep(1e6)

asyncio.run(main())
"""


def test_nothing_outlives_us_whatever_we_die_of(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    keeper = psutil.Process(int(parent.stdout.readline()))
    members = [keeper, *keeper.children(recursive=True)]
    assert len(members) == 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until("their end", lambda: are_gone(members))


# -- what the real one was heard to say, in pieces of any size ---------------------------------------------------------

FAILURES = {910: "abort", 911: "EngineCore", 912: "connection broke"}


async def test_recorded_failures_are_errors_and_the_next_request_is_answered(start: Start) -> None:
    generator = await start()
    for first, words in FAILURES.items():
        error = await error_of(generator, asked(chr(first), new=900))
        assert isinstance(error, Unavailable), error
        assert words in error.message
        assert error.retry_after_s is not None
        assert await whole(generator, asked("ok", new=2)) == "ok"
    error = await error_of(generator, asked(chr(917), new=5))
    assert isinstance(error, InvalidInput), "a stream that had begun with status 200"
    assert "out of vocabulary" in error.message


async def test_a_recorded_answer_is_its_tokens_by_id(start: Start) -> None:
    generator = await start()
    for _ in range(3):
        events = [event async for event in generator.generate(asked(chr(914), new=5), deadline=soon())]
        assert len({event.token for event in events} - {-1}) > 1
        assert [event.finish for event in events] == [None] * 4 + ["length"]
        assert events[-1].usage is not None
        assert (events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens) == (3, 5)
    events = [event async for event in generator.generate(asked(chr(915), new=2), deadline=soon())]
    assert events[-1].usage is not None
    assert 0 < events[-1].usage.cached_tokens < events[-1].usage.prompt_tokens == 300


async def test_a_recorded_refusal_of_a_full_server_says_when_to_come_back(start: Start) -> None:
    """It comes as a status, or, where the stream has begun already, as an event."""
    generator = await start()
    other = asyncio.create_task(whole(generator, asked("ab", new=300)))
    await until("another answer", lambda: generator.outstanding == 1)
    for first in (913, 916) * 3:
        error = await error_of(generator, asked(chr(first), new=5))
        assert isinstance(error, QueueFull)
        assert error.retry_after_s == 1.0, "vLLM says none"
    assert generator.health().is_well, "who is full of our requests works"
    assert await other == "ab" * 150


async def test_a_request_that_it_cannot_answer_never_reaches_it(start: Start) -> None:
    generator = await start()
    for wrong in ({"prompt_ids": (10**6,)}, {"prompt_ids": ()}, {"max_new_tokens": 10**6}):
        assert isinstance(await error_of(generator, msgspec.structs.replace(asked(), **wrong)), InvalidInput)
