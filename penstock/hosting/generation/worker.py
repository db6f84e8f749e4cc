"""The program that runs one engine in a process of its own: ``python -m penstock.hosting.generation.worker``.

Its parent (``penstock.hosting.generation.process``) gives it one end of a socket pair and says over it what to load and
to answer. One thread: commands are taken between two steps. Ends when its parent does, however that ends, and with its
engine's first failure; restarting is the parent's. Who asks over a network never talks to it.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

import penstock.runtime.generation
from penstock.errors import ConfigError, InvalidInput
from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.hosting.generation.frames import (
    Ask,
    Begin,
    Cancel,
    FromWorker,
    Loaded,
    Ping,
    Report,
    ToWorker,
    encode,
    to_worker,
)
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.loop import EngineLoop
from penstock.hosting.workers import child
from penstock.hosting.workers.child import MAX_FRAME_BYTES, Pipe
from penstock.hosting.workers.framing import Failure, failure_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A request with values of types that no request has; the parent checks none, since it would pay for each."""

    id: str
    why: str


def main(descriptor: int, parent: int) -> int:
    """Serve the parent that is at the other end of a socket until one of us ends; return the exit status."""
    return child.run(
        descriptor,
        parent,
        first=_begin,
        ready=_Serving,
        engine=lambda begin: begin.model.engine,
        failed=lambda error: _frame(failure_of("", error)),
    )


def load(begin: Begin) -> EngineLoop:
    """Make the engine and the text of its answers, as the parent told.

    Raises:
        InvalidInput: no such engine. MissingExtra: a library is not installed. ArtifactError: the files are not those
            of a model with a tokenizer.
    """
    directory = Path(begin.model.directory)
    # the tokenizer first: it is quick, and what is wrong with it is told before the weights are read
    pieces = tokenizer.load(_files(directory)).pieces
    engine = penstock.runtime.generation.load(begin.model.engine, directory, begin.model.options)
    limits = begin.line.of(engine.facts)
    return EngineLoop(engine, lambda request: AnswerText(request, pieces), limits, time.monotonic)


def serve(pipe: Pipe, loop: EngineLoop, *, max_unsent_bytes: int) -> None:
    """Take commands, make a step, say what came of it, until the parent is gone.

    A parent that does not read stops the engine when ``max_unsent_bytes`` wait for it: what nobody takes is not made.

    Raises:
        ParentGone: the usual end. Internal: the engine failed.
    """
    told: tuple[Load, Totals] | None = None
    refused: list[Failure] = []
    has_work = False
    while True:
        is_jammed = pipe.unsent_bytes > max_unsent_bytes
        messages = [_message(body) for body in pipe.receive(0.0 if has_work and not is_jammed else None)]
        refused += [failure for message in messages if (failure := obey(loop, message)) is not None]
        if any(isinstance(message, Ping) for message in messages):
            told = None
        if pipe.unsent_bytes > max_unsent_bytes:
            continue
        turn = loop.turn()
        has_work = turn.has_work
        failures = (*refused, *(failure_of(id, error) for id, error in turn.failures))
        refused.clear()
        load_now, totals = loop.load(), loop.totals()
        if turn.events or failures or (load_now, totals) != told:
            report = Report(events=turn.events, failures=failures, times=turn.times, load=load_now, totals=totals)
            pipe.send(_frame(report))
            told = load_now, totals


def obey(loop: EngineLoop, message: ToWorker | Unreadable) -> Failure | None:
    """Do what the parent says; return what it has to hear of a request that cannot be taken.

    Whatever is wrong with one request, the others go on.
    """
    match message:
        case Unreadable(id=id, why=why):
            return failure_of(id, InvalidInput(f"the request is malformed: {why}"))
        case Ask(request=request, left_s=left_s, priority=priority):
            deadline = float("inf") if left_s is None else time.monotonic() + left_s
            try:
                loop.submit(request, deadline=deadline, priority=priority)
            except Exception as error:
                return failure_of(request.id, error)
        case Cancel(id=id):
            loop.cancel(id)
        case Ping():
            pass  # the report that follows is the answer
        case Begin():
            raise ConfigError("a worker was told twice what to load")
    return None


def _frame(message: FromWorker) -> bytes:
    return encode(message, max_bytes=MAX_FRAME_BYTES)


def _message(body: bytes) -> ToWorker | Unreadable:
    try:
        return to_worker.decode(body)
    except msgspec.ValidationError as error:
        return Unreadable(id=str(msgspec.msgpack.decode(body)["request"]["id"]), why=str(error))


def _files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in tokenizer.FILES if (directory / name).is_file()}


def _begin(body: bytes) -> Begin:
    message = _message(body)
    if not isinstance(message, Begin):
        raise ConfigError(f"a worker has to be told first what to load, not {type(message).__name__}")
    return message


class _Serving:
    """An engine that is loaded, and the parent that was told so."""

    def __init__(self, pipe: Pipe, begin: Begin) -> None:
        self._pipe, self._max_unsent_bytes = pipe, begin.max_pipe_bytes
        self._loop = load(begin)
        pipe.send(_frame(Loaded(facts=self._loop.facts)))

    def serve(self) -> None:
        serve(self._pipe, self._loop, max_unsent_bytes=self._max_unsent_bytes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
