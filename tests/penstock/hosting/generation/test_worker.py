"""The worker's side of the pipe: what a command costs, what a parent that does not read costs, and its last words."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.errors import ArtifactError, ConfigError
from penstock.generation.values import SampledToken
from penstock.hosting.generation import worker
from penstock.hosting.generation.frames import (
    Ask,
    Begin,
    Cancel,
    FromWorker,
    Model,
    Report,
    ToWorker,
    encode,
    from_worker,
)
from penstock.hosting.generation.loop import EngineLoop
from penstock.hosting.generation.settings import LineSettings
from penstock.hosting.workers.child import ParentGone, Pipe
from penstock.hosting.workers.framing import Splitter
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.scripted import Script, ScriptedEngine
from tests.penstock.hosting.generation.letters import asked, letters, model
from tests.waiting import PATIENCE_S, wait_until

MANY = 2**24


class Stepped(ScriptedEngine):
    """Makes a step when a test says so: ``begun`` says that one is under way, ``may_end`` lets it end."""

    def __init__(self) -> None:
        super().__init__(Script(context_tokens=100_000), GenerationOptions(slots=2))
        self.begun: queue.Queue[None] = queue.Queue()
        self.may_end: queue.Queue[None] = queue.Queue()

    def step(self) -> Sequence[SampledToken]:
        self.begun.put(None)
        self.may_end.get(timeout=PATIENCE_S)
        return super().step()


class Parent:
    """The other end, which reads only when it is told to."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self._connection, self._splitter = connection, Splitter(MANY)

    def say(self, message: ToWorker) -> None:
        self._connection.sendall(encode(message, max_bytes=MANY))

    def hear(self) -> list[FromWorker]:
        data = self._connection.recv(65536)
        return [from_worker.decode(body) for body in self._splitter.feed(data)]

    def hear_to_the_end(self, tokens: int) -> list[str]:
        """The texts of the first ``tokens`` events."""
        texts: list[str] = []
        while len(texts) < tokens:
            reports = [message for message in self.hear() if isinstance(message, Report)]
            texts += [event.text for report in reports for _, event in report.events]
        return texts


@contextmanager
def serving(engine: ScriptedEngine, *, max_unsent_bytes: int = MANY) -> Iterator[tuple[Parent, Pipe]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pipe = Pipe(theirs)
    loop = EngineLoop(engine, letters, LineSettings().of(engine.facts), time.monotonic)
    ends: list[BaseException] = []

    def run() -> None:
        try:
            worker.serve(pipe, loop, max_unsent_bytes=max_unsent_bytes)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Parent(ours), pipe
    finally:
        ours.close()
        thread.join(PATIENCE_S)
        theirs.close()
    assert [type(end) for end in ends] == [ParentGone]


@pytest.mark.parametrize("when", [1, 2, 5])
def test_a_cancellation_reaches_the_engine_within_the_step_that_runs(when: int) -> None:
    engine = Stepped()
    with serving(engine) as (parent, _):
        parent.say(Ask(request=asked("abcde", new=90_000, id="1")))
        for _ in range(when - 1):
            engine.begun.get(timeout=PATIENCE_S)
            engine.may_end.put(None)
        engine.begun.get(timeout=PATIENCE_S)  # this one is under way
        parent.say(Cancel(id="1"))
        engine.may_end.put(None)
        parent.say(Ask(request=asked("z", new=1, id="2")))
        engine.begun.get(timeout=PATIENCE_S)
        assert (engine.steps, engine.cancelled, engine.running) == (when, 1, 1)
        engine.may_end.put(None)
        wait_until("the next answer", lambda: engine.steps == when + 1)


def test_a_parent_that_does_not_read_stops_the_engine_and_loses_nothing() -> None:
    engine = ScriptedEngine(Script(context_tokens=100_000), GenerationOptions(slots=2))
    with serving(engine, max_unsent_bytes=2000) as (parent, pipe):
        parent.say(Ask(request=asked("abcde", new=5000, id="1")))
        wait_until("a full pipe", lambda: pipe.unsent_bytes > 2000)
        assert pipe.unsent_bytes < 2000 + 500, "one report more than the limit"
        made = engine.steps
        parent.say(Ask(request=asked(id="2")))  # wakes it, and it takes no step for that
        parent.say(Cancel(id="2"))
        assert engine.steps == made < 2000
        assert "".join(parent.hear_to_the_end(5000)) == "abcde" * 1000


def test_what_waits_behind_a_full_pipe_is_refused_when_there_is_room_to_say_so() -> None:
    engine = ScriptedEngine(Script(context_tokens=100_000), GenerationOptions(slots=2))
    with serving(engine, max_unsent_bytes=2000) as (parent, pipe):
        parent.say(Ask(request=asked("abcde", new=3000, id="1")))
        wait_until("a full pipe", lambda: pipe.unsent_bytes > 2000)
        parent.say(Ask(request=asked(new=10**6, id="wrong")))
        failures = []
        while not failures:
            failures = [f for message in parent.hear() if isinstance(message, Report) for f in message.failures]
        assert [(failure.id, failure.code) for failure in failures] == [("wrong", "invalid-input")]


def test_it_says_nothing_while_nothing_happens() -> None:
    with serving(ScriptedEngine(Script(), GenerationOptions())) as (parent, _):
        parent.say(Cancel(id="unknown"))
        parent.say(Ask(request=asked("ab", new=2, id="1")))
        reports = []
        while len(reports) < 4:  # one of where it stands, one of each step, and nothing after
            reports += parent.hear()
            if any(isinstance(r, Report) and any(e.finish for _, e in r.events) for r in reports):
                break
        assert len(reports) <= 3


def begin(model: Model) -> Begin:
    return Begin(model=model, max_pipe_bytes=MANY)


def test_a_model_is_loaded_with_its_text(tmp_path: Path) -> None:
    assert worker.load(begin(model(tmp_path, slots=3))).facts.slots == 3


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    scripted = model(tmp_path)
    (tmp_path / "script.json").unlink()
    with pytest.raises(ArtifactError, match=r"script\.json"):
        worker.load(begin(scripted))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        worker.load(begin(scripted))


def test_a_parent_that_says_something_else_first_is_not_obeyed() -> None:
    with pytest.raises(ConfigError):
        worker._begin(encode(Cancel(id="1"), max_bytes=MANY)[4:])


def test_a_parent_that_is_gone_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        pipe = Pipe(theirs)
        ours.sendall(struct.pack("<I", 100))
        assert pipe.receive(None) == []
        ours.close()
        with pytest.raises(ParentGone):
            pipe.receive(None)
