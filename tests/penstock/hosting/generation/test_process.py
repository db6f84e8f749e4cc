"""Engines in processes of their own, with what happens to processes: kills, hangs, stops, and the ends of parents."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import uvloop

from penstock.errors import (
    ArtifactError,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    PenstockError,
    QueueFull,
    Unavailable,
)
from penstock.generation.values import GenerationRequest, Sampling, TokenEvent
from penstock.hosting.generation.frames import Model
from penstock.hosting.generation.process import ProcessGenerator
from penstock.hosting.generation.settings import GenerationSettings, LineSettings, WorkerSettings
from penstock.hosting.generation.worker_life import WorkerLife
from tests.penstock.hosting.generation.letters import asked, model
from tests.penstock.runtime.generation.references import MODELS, references
from tests.waiting import PATIENCE_S, until, wait_until

HANG = 900
"""The token at which the engine hangs, where a test has it do so."""

Start = Callable[..., Awaitable[ProcessGenerator]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """``start(line={}, worker={}, **script)`` starts a generator that is impatient, for a test."""
    made: list[ProcessGenerator] = []

    async def begin(
        *, line: dict[str, Any] | None = None, worker: dict[str, Any] | None = None, measures: Any = None, **script: Any
    ) -> ProcessGenerator:
        settings = GenerationSettings(
            line=LineSettings(**(line or {})), worker=WorkerSettings(**{"backoff_base_s": 0.01, **(worker or {})})
        )
        script = {"context_tokens": 100_000, "step_s": 0.002, **script}
        slots = script.pop("slots", 4)
        generator = ProcessGenerator(
            "letters", model=model(tmp_path, slots=slots, **script), settings=settings, measures=measures
        )
        made.append(generator)
        await generator.start()
        return generator

    yield begin
    for generator in made:
        await generator.close(0.0)


def soon() -> float:
    return asyncio.get_running_loop().time() + PATIENCE_S


async def whole(generator: ProcessGenerator, request: Any, deadline: float | None = None) -> str:
    events = generator.generate(request, deadline=soon() if deadline is None else deadline)
    return "".join([event.text async for event in events])


async def error_of(generator: ProcessGenerator, request: Any, deadline: float | None = None) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await whole(generator, request, deadline)
    return caught.value


async def is_well_again(generator: ProcessGenerator) -> None:
    await until("well again", lambda: generator.health().is_well)
    assert await whole(generator, asked("ok", new=2)) == "ok"


def pid_of(generator: ProcessGenerator) -> int:
    assert generator.pid is not None
    return generator.pid


def is_there(pid: int) -> bool:
    """Whether a process is there, a zombie not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def test_a_kill_costs_its_own_requests_in_whatever_phase_they_are(start: Start) -> None:
    generator = await start(line={"max_waiting": 8}, slots=2)
    for crashes, phase in enumerate(["nothing", "prompt", "answer", "line"], 1):
        requests = {
            "nothing": [],
            "prompt": [asked("x" * 50_000, id="0")],
            "answer": [asked(new=90_000, id="0"), asked(new=90_000, id="1")],
            "line": [asked(new=90_000, id=str(number)) for number in range(5)],
        }[phase]
        before = generator.counts().totals.steps
        tasks = [asyncio.create_task(error_of(generator, request)) for request in requests]
        if tasks:
            await until(phase, lambda b=before: generator.counts().totals.steps > b + 2)
        os.kill(pid_of(generator), signal.SIGKILL)
        for error in await asyncio.gather(*tasks):
            assert isinstance(error, Unavailable)
            assert "killed by SIGKILL" in error.message
            assert error.retry_after_s is not None
        await until("noticed", lambda n=crashes: generator.counts().crashes == n)
        await is_well_again(generator)
    assert generator.counts().starts == 5


async def test_who_asks_while_it_is_restarted_hears_when_to_come_back(start: Start) -> None:
    generator = await start(worker={"backoff_base_s": 30.0})
    os.kill(pid_of(generator), signal.SIGKILL)
    await until("noticed", lambda: not generator.health().is_well)
    assert "started again" in generator.health().why or "ended" in generator.health().why
    error = await error_of(generator, asked())
    assert isinstance(error, Unavailable)
    assert error.retry_after_s is not None
    assert error.retry_after_s >= 1.0


async def test_an_answer_that_was_whole_before_the_kill_is_whole(start: Start) -> None:
    generator = await start()
    async with aclosing(generator.generate(asked("hello", new=5), deadline=soon())) as stream:
        text = (await anext(stream)).text
        await until("its end", lambda: generator.outstanding == 0)
        os.kill(pid_of(generator), signal.SIGKILL)
        await until("noticed", lambda: generator.counts().crashes == 1)
        events = [event async for event in stream]
    assert text + "".join(event.text for event in events) == "hello"
    assert events[-1].finish == "length"


@pytest.mark.parametrize("how", ["stopped", "hung"])
async def test_a_worker_that_has_work_and_does_not_move_is_killed(start: Start, how: str) -> None:
    generator = await start(worker={"hang_s": 1.0}, hang_on=HANG)
    pid = pid_of(generator)
    request = asked("hello", new=90_000, id="a")
    if how == "hung":
        tasks = [asyncio.create_task(error_of(generator, asked("h" + chr(HANG), id="b")))]
    else:
        tasks = [asyncio.create_task(error_of(generator, request))]
        await until("tokens", lambda: generator.counts().totals.completion_tokens > 5)
        os.kill(pid, signal.SIGSTOP)
    for error in await asyncio.gather(*tasks):
        assert isinstance(error, Unavailable)
        assert "no step for 1 s" in error.message
    assert (generator.counts().hangs, generator.counts().crashes) == (1, 0)
    assert not is_there(pid)
    await is_well_again(generator)


async def test_an_idle_worker_that_hangs_is_found_before_anybody_asks(start: Start) -> None:
    generator = await start(worker={"hang_s": 1.0, "idle_ping_s": 0.1})
    os.kill(pid_of(generator), signal.SIGSTOP)
    await until("found", lambda: generator.counts().hangs == 1)
    await is_well_again(generator)


async def test_an_idle_worker_gives_a_sign_of_life_and_computes_nothing_for_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings: list[WorkerLife] = []

    def ping(life: WorkerLife) -> None:
        assert not life.is_pinged, "the one before was answered"
        pings.append(life)
        sent(life)

    sent = WorkerLife.ping
    monkeypatch.setattr(WorkerLife, "ping", ping)
    generator = await start(worker={"hang_s": 5.0, "idle_ping_s": 0.5})
    await until("pings", lambda: len(pings) == 2)
    assert generator.health().is_well
    assert (generator.counts().totals.steps, generator.counts().hangs) == (1, 0)


async def test_a_worker_that_talks_nonsense_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        life = WorkerLife(WorkerSettings(), lambda report: None)
        await asyncio.get_running_loop().create_unix_connection(lambda: life.process, sock=ours)
        answer = life.ask(asked(), left_s=1.0)
        theirs.sendall(b"\x03\x00\x00\x00abc")
        await asyncio.wait_for(life.is_gone.wait(), PATIENCE_S)
        assert life.complaint is not None
        assert "nonsense" in life.complaint.message
        life.fail_all(lambda: Unavailable("gone"))
        with pytest.raises(Unavailable):
            await answer.next(soon())
        with pytest.raises(Unavailable):
            life.ask(asked(), left_s=1.0)
        assert "nonsense" in await life.end(0.0)


MALFORMED: list[dict[str, Any]] = [
    {"max_new_tokens": "many"},
    {"sampling": Sampling(seed=2**70)},
    {"stop": ("\ud800",)},
    {"stop": ("",)},
    {"top_logprobs": 1.5},
    {"prompt_ids": ("a",)},
]


async def test_a_malformed_request_ends_alone(start: Start) -> None:
    generator = await start()
    other = asyncio.create_task(whole(generator, asked(new=200, id="other")))
    for wrong in MALFORMED:
        error = await error_of(generator, msgspec.structs.replace(asked(), **wrong))
        assert isinstance(error, InvalidInput), wrong
    assert len(await other) == 200
    assert generator.counts().crashes == 0


async def test_a_long_line_is_no_hang(start: Start) -> None:
    """The last one waits for longer than the time after which a worker that does not move is killed."""
    generator = await start(worker={"hang_s": 2.0}, line={"max_waiting": 50}, slots=1, step_s=0.02)
    tasks = [asyncio.create_task(whole(generator, asked(new=20, id=str(number)))) for number in range(8)]
    while not all(task.done() for task in tasks):
        assert generator.health().is_well
        await asyncio.sleep(0.05)
    assert {len(await task) for task in tasks} == {20}
    assert generator.counts().hangs == 0


@pytest.mark.parametrize(("how", "words"), [("fail_on", "the script has this step fail"), ("die_on", "exit status 70")])
async def test_an_engine_that_fails_is_named_and_replaced(start: Start, how: str, words: str) -> None:
    generator = await start(**{how: HANG})
    other = asyncio.create_task(error_of(generator, asked(new=90_000, id="other")))
    await until("tokens", lambda: generator.counts().totals.completion_tokens > 5)
    error = await error_of(generator, asked("h" + chr(HANG)))
    assert words in error.message
    assert words in (await other).message
    await is_well_again(generator)


async def test_restarts_are_bounded_and_the_reason_stays(start: Start, tmp_path: Path) -> None:
    generator = await start(worker={"max_restarts": 2, "slow_restart_s": 0})
    (tmp_path / "script.json").unlink()
    os.kill(pid_of(generator), signal.SIGKILL)
    await until("the end of it", lambda: "in a row" in generator.health().why)
    assert "3 times in a row" in generator.health().why
    assert "no script" in generator.health().why
    error = await error_of(generator, asked())
    assert isinstance(error, Unavailable)
    assert error.retry_after_s is None, "nobody restarts it"


async def test_what_failed_too_often_is_tried_now_and_then_and_comes_back(start: Start, tmp_path: Path) -> None:
    generator = await start(worker={"max_restarts": 1, "slow_restart_s": 0.3})
    script = (tmp_path / "script.json").rename(tmp_path / "away.json")
    os.kill(pid_of(generator), signal.SIGKILL)
    await until("slow tries", lambda: "3 times in a row and is started again now" in generator.health().why)
    assert "within 0.3 s; the last time: " in generator.health().why
    error = await error_of(generator, asked())
    assert isinstance(error, Unavailable)
    assert error.retry_after_s is not None
    script.rename(tmp_path / "script.json")
    await is_well_again(generator)


async def test_a_model_that_cannot_be_loaded_says_why_at_once(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match=r"script\.json"):
        await start(context_tokens="many")
    assert "model not loaded" in capfd.readouterr().err, "its log is where ours is"
    with pytest.raises(Unavailable, match="before its first token: exit status 70"):
        await start(die_on=0)
    with pytest.raises(Unavailable, match="no token within 0.6 s"):
        await start(hang_on=0, worker={"start_timeout_s": 0.6})


async def test_streams_survive_a_sigterm_to_the_whole_service(start: Start) -> None:
    generator = await start()
    async with aclosing(generator.generate(asked("hello", new=50), deadline=soon())) as stream:
        text = (await anext(stream)).text
        os.killpg(pid_of(generator), signal.SIGTERM)
        os.killpg(pid_of(generator), signal.SIGINT)
        text += "".join([event.text async for event in stream])
    assert text == "hello" * 10
    assert os.getpgid(pid_of(generator)) != os.getpgid(0)


async def test_unloading_ends_the_process(start: Start) -> None:
    generator = await start(worker={"nice": 3, "threads": 2})
    pid = pid_of(generator)
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == "2"
    await generator.close(0.0)
    assert not is_there(pid)
    assert generator.pid is None


async def test_closing_ends_a_worker_that_does_not_listen(start: Start) -> None:
    generator = await start(worker={"exit_s": 0.1})
    pid = pid_of(generator)
    os.kill(pid, signal.SIGSTOP)
    await generator.close(0.0)
    assert not is_there(pid)


async def test_closing_while_it_waits_for_a_restart(start: Start) -> None:
    generator = await start(worker={"backoff_base_s": 30.0})
    os.kill(pid_of(generator), signal.SIGKILL)
    await until("noticed", lambda: generator.counts().crashes == 1)
    await generator.close(PATIENCE_S)
    assert generator.health().why == "it is closed"


async def test_a_reader_that_stops_reading_is_cancelled_and_hears_why(start: Start) -> None:
    generator = await start(worker={"max_unread_events": 20})
    async with aclosing(generator.generate(asked(new=90_000), deadline=soon())) as stream:
        await anext(stream)
        await until("given up", lambda: generator.counts().totals.cut_off == 1)
        assert generator.counts().load.running == 0
        events: list[TokenEvent] = []
        with pytest.raises(Cancelled, match="max_unread_events"):
            await _read(stream, events)
    assert len(events) == 20, "what was there before is still given"


async def _read(stream: AsyncIterator[TokenEvent], events: list[TokenEvent]) -> None:
    async for event in stream:
        events.append(event)  # noqa: PERF401, they count when it raises, too


async def test_a_worker_that_does_not_read_is_asked_for_a_bounded_amount(start: Start) -> None:
    generator = await start(worker={"max_pipe_bytes": 64 * 1024}, line={"max_waiting": 1000})
    os.kill(pid_of(generator), signal.SIGSTOP)
    tasks = [
        asyncio.create_task(error_of(generator, asked("x" * 20_000, id=str(n)), asyncio.get_running_loop().time() + 1))
        for n in range(100)
    ]
    errors = await asyncio.gather(*tasks)
    refused = [error for error in errors if isinstance(error, QueueFull)]
    late = [error for error in errors if isinstance(error, DeadlineExceeded)]
    assert len(refused) > 50
    assert len(refused) + len(late) == 100, "whatever the worker does, deadlines are kept"
    os.kill(pid_of(generator), signal.SIGCONT)
    await until("an empty pipe", lambda: generator.counts().totals.cut_off == len(late))
    await is_well_again(generator)
    assert generator.counts().totals.prompt_tokens == 3, "nothing that was late got a token"


async def test_a_real_model_answers_as_its_makers_say_also_after_a_kill(start: Start) -> None:
    rows = references("edge-int4")[:4]
    settings = GenerationSettings(worker=WorkerSettings(backoff_base_s=0.01, threads=1))
    real = Model(engine="onnxruntime", directory=str(MODELS / "edge-int4"))
    generator = ProcessGenerator("codecomplete", model=real, settings=settings)
    await generator.start()
    try:
        for _ in range(2):
            requests = [
                GenerationRequest(id="a", prompt_ids=row.ids, max_new_tokens=len(row.new), ignore_end=True)
                for row in rows
            ]
            answers = await asyncio.gather(*(events_of(generator, request) for request in requests))
            for row, answer in zip(rows, answers, strict=True):
                assert [event.token for event in answer[: row.sure]] == list(row.new[: row.sure])
                assert answer[-1].finish == "length"
                assert "\ufffd" not in "".join(event.text for event in answer[:-1])
            os.kill(pid_of(generator), signal.SIGKILL)
            await until("noticed", lambda: not generator.health().is_well)
            await until("well again", lambda: generator.health().is_well)
    finally:
        await generator.close(0.0)


async def events_of(generator: ProcessGenerator, request: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in generator.generate(request, deadline=soon())]


class Seen:
    def __init__(self) -> None:
        self.first: list[float] = []
        self.between: list[float] = []
        self.waits: list[float] = []

    def queued(self, seconds: float) -> None:
        self.waits.append(seconds)

    def first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def between_tokens(self, seconds: float) -> None:
        self.between.append(seconds)


async def test_what_is_counted_goes_on_over_restarts(start: Start) -> None:
    seen = Seen()
    generator = await start(measures=seen)
    await whole(generator, asked("hello", new=5))
    assert (len(seen.waits), len(seen.first), len(seen.between)) == (2, 2, 4), "one is the token before all others"
    assert generator.counts().totals.completion_tokens == 6
    os.kill(pid_of(generator), signal.SIGKILL)
    await until("noticed", lambda: generator.counts().crashes == 1)
    await is_well_again(generator)
    assert generator.counts().totals.completion_tokens == 6 + 1 + 2
    assert generator.counts().load.running == 0


PARENT = """
import asyncio, sys
from pathlib import Path
from penstock.hosting.generation.process import ProcessGenerator
from tests.penstock.hosting.generation.letters import asked, model

async def main(how):
    script = {"hang_on": 900} if how == "hung" else {"step_s": 0.01, "context_tokens": 100_000}
    generator = ProcessGenerator("letters", model=model(Path(sys.argv[1]), **script))
    await generator.start()
    stream = generator.generate(asked("ab" if how == "idle" else "a\u0384b", new=400), deadline=1e12)
    if how != "idle":
        reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.2 if how == "hung" else 0)
    print(generator.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a worker in a hung step is ended by a signal that Linux has")
@pytest.mark.parametrize("how", ["idle", "hung"])
def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_there(worker)
        if how == "idle":
            assert Path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "500", "memory is taken from it first"
        parent.kill()
    wait_until("no orphan", lambda: not is_there(worker))


def test_it_runs_on_the_loop_that_servers_use(tmp_path: Path) -> None:
    async def test() -> None:
        generator = ProcessGenerator("letters", model=model(tmp_path))
        await generator.start()
        assert await whole(generator, asked("hello", new=5)) == "hello"
        assert isinstance(
            await error_of(generator, asked(new=400), asyncio.get_running_loop().time() - 1), DeadlineExceeded
        )
        pid = pid_of(generator)
        os.kill(pid, signal.SIGKILL)
        await until("noticed", lambda: generator.counts().crashes == 1)
        await is_well_again(generator)
        await generator.close(0.0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())
