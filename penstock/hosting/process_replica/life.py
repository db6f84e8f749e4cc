"""One life of a replica's worker, as its parent sees it: the batches that it owes, in the order in which it runs them.

The process itself is ``penstock.hosting.workers.worker_process``; whether another life follows is
``penstock.hosting.workers.lives``'s, and what becomes of a batch that a life left unanswered is
``penstock.hosting.process_replica.replica``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import PenstockError, Unavailable
from penstock.hosting.process_replica.memory import Slot, can_share
from penstock.hosting.process_replica.messages import (
    NO_SLOT,
    Answer,
    Begin,
    Loaded,
    Model,
    Ping,
    Pong,
    Run,
    frame,
    from_worker,
)
from penstock.hosting.process_replica.settings import ReplicaWorkerSettings
from penstock.hosting.process_replica.tensor_bytes import lay_out, read
from penstock.hosting.process_replica.worker import MAX_IN_FRAME_BYTES
from penstock.hosting.replica import Chunk, clock_of, too_late
from penstock.hosting.rows import Tensors, split
from penstock.hosting.workers.child import MAX_FRAME_BYTES
from penstock.hosting.workers.framing import Failure, error_of
from penstock.hosting.workers.worker_process import WorkerProcess
from penstock.process.telemetry import LogSettings

SLOTS = 2
"""A batch that runs, and one ahead."""

_PROGRAM = "penstock.hosting.process_replica.worker"


class WorkerLost(Exception):
    """The worker ended and left a batch unanswered.

    Attributes:
        has_begun: the batch may have run, and may be what ended it; what was ahead in the worker had not begun.
    """

    def __init__(self, why: str, *, has_begun: bool) -> None:
        super().__init__(why)
        self.why, self.has_begun = why, has_begun


@dataclass(slots=True, eq=False)
class _Owed:
    """A batch that the worker has not answered yet."""

    rows: tuple[int, ...]
    slot: int
    size_bytes: int
    future: asyncio.Future[Sequence[Tensors | PenstockError]]


class ReplicaLife:
    """A process that runs one engine. Everything here happens on the event loop that started it.

    Attributes:
        process: in which it runs.
        facts: of the model; None until it has proved itself.
        has_loaded: is set when it has, or is gone.
    """

    def __init__(self, settings: ReplicaWorkerSettings, hang_s: float) -> None:
        self._settings, self._hang_s = settings, hang_s
        self.process = WorkerProcess(self._take, self._gone, max_frame_bytes=MAX_FRAME_BYTES)
        self.facts: Loaded | None = None
        self.has_loaded, self._is_idle = asyncio.Event(), asyncio.Event()
        self._is_idle.set()
        self._owed: dict[str, _Owed] = {}
        self._slots = [Slot.create() for _ in range(SLOTS)] if can_share() else []
        self._free = list(range(len(self._slots)))
        self._asked = self._moved = 0
        self._sent_at = 0.0
        self._is_pinged = False
        self._how = ""
        self._now = clock_of(asyncio.get_running_loop())

    def __repr__(self) -> str:
        return f"ReplicaLife(pid={self.pid}, {len(self._owed)} batches unanswered)"

    @property
    def pid(self) -> int | None:
        """Return the process's id, which is its group's; None before it was started."""
        return self.process.pid

    @property
    def unanswered(self) -> int:
        """Return the number of batches that it owes."""
        return len(self._owed)

    async def begin(self, model: Model, log: LogSettings | None) -> Loaded:
        """Start the process, and wait until the model has proved itself.

        Raises:
            Unavailable: it cannot be started, or ended. PenstockError: what it says about the model.
        """
        slots = tuple(slot.descriptor for slot in self._slots)
        first = frame(Begin(model=model, slots=slots, nice=self._settings.nice, log=log))
        await self.process.begin(_PROGRAM, first, threads=model.threads, descriptors=slots)
        await self.has_loaded.wait()
        if self.facts is None:
            how = await self.end(self._settings.exit_s)
            raise self.process.complaint or Unavailable(f"its process ended while it loaded: {how}")
        return self.facts

    async def run(self, chunks: Sequence[Chunk]) -> Sequence[Tensors | PenstockError]:
        """Run chunks as one batch: for each, in order, its outputs, or that it was late.

        Raises:
            WorkerLost: it ended before it answered. PenstockError: the engine's error.
        """
        if self.process.is_gone.is_set():
            raise WorkerLost("its process has ended", has_begun=False)
        self._asked += 1
        id, slot = str(self._asked), self._free.pop() if self._free else NO_SLOT
        try:
            message, size_bytes = self._message(id, slot, chunks)
            self.process.send(frame(message))
        except BaseException:
            self._release(slot, 0)
            raise
        future: asyncio.Future[Sequence[Tensors | PenstockError]] = asyncio.get_running_loop().create_future()
        self._owed[id] = _Owed(message.rows, slot, size_bytes, future)
        self._is_idle.clear()
        return await future

    async def watched(self) -> str:
        """Wait until it is gone, or does not move though it has work; return that in words, or ""."""
        self._how = await self.process.watched(
            self._hang_s,
            progress=lambda: self._moved,
            has_work=lambda: bool(self._owed) or self._is_pinged,
            idle_ping_s=self._settings.idle_ping_s,
            ping=self._ping,
        )
        return self._how

    async def drained(self, timeout_s: float) -> None:
        """Wait until everything is answered, for as long as that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), timeout_s)

    async def end(self, grace_s: float) -> str:
        """End it, by force after ``grace_s``; return how it ended."""
        how = await self.process.end(grace_s)
        self._how = self._how or how
        for slot in self._slots:
            slot.close()
        self._free.clear()
        return self._how

    def fail_all(self, error: Callable[[], PenstockError]) -> None:
        """End everything that is unanswered. The first one was running; those behind it had not begun."""
        owed, self._owed = self._owed, {}
        for place, one in enumerate(owed.values()):
            if not one.future.done():
                one.future.set_exception(WorkerLost(self._how or error().message, has_begun=place == 0))
        self._is_idle.set()

    # -- what it is asked -----------------------------------------------------------------------------------------

    def _message(self, id: str, slot: int, chunks: Sequence[Chunk]) -> tuple[Run, int]:
        """Write a batch; return its message, and the bytes that it takes in its slot."""
        laid = lay_out([chunk.inputs for chunk in chunks])
        data, size_bytes = b"", 0
        if slot == NO_SLOT or laid.size_bytes <= MAX_IN_FRAME_BYTES:
            buffer = bytearray(laid.size_bytes)
            laid.write(buffer)
            data = bytes(buffer)
        else:
            size_bytes = laid.size_bytes
            laid.write(self._slots[slot].grown(size_bytes))
        now = self._now()
        left_s = tuple([chunk.deadline - now for chunk in chunks])
        sent_at = time.monotonic()
        after_s, self._sent_at = sent_at - self._sent_at, sent_at
        message = Run(
            id=id,
            parts=laid.parts,
            rows=tuple([chunk.rows for chunk in chunks]),
            left_s=left_s if min(left_s) < math.inf else (),
            after_s=after_s,
            outputs=chunks[0].outputs,
            slot=slot,
            size_bytes=size_bytes,
            data=data,
        )
        return message, size_bytes

    def _ping(self) -> None:
        self._is_pinged = True
        self.process.send(frame(Ping()))

    # -- what it says ---------------------------------------------------------------------------------------------

    def _take(self, body: bytes) -> None:
        message = from_worker.decode(body)
        self._moved += 1
        match message:
            case Answer(id=id):
                self._answered(id, message)
            case Failure(id=""):
                self.process.complaint = error_of(message)
            case Failure(id=id):
                self._settle(id, error_of(message), 0)
            case Pong():
                self._is_pinged = False
            case Loaded():
                self.facts = message
                self.has_loaded.set()

    def _answered(self, id: str, answer: Answer) -> None:
        owed = self._owed.get(id)
        if owed is None:
            return
        outcome: Sequence[Tensors | PenstockError] | PenstockError
        try:
            outcome = self._outputs(owed, answer)
        except PenstockError as error:  # what it sent is not what it said
            outcome = error
        self._settle(id, outcome, max(owed.size_bytes, answer.slot_bytes))

    def _outputs(self, owed: _Owed, answer: Answer) -> Sequence[Tensors | PenstockError]:
        """Read what came of a batch. What lies in the slot is copied: the next batch will write there."""
        if answer.slot_bytes:
            seen = read(answer.parts, self._slots[owed.slot].seen(answer.slot_bytes))
            outputs = {name: np.array(array) for name, array in seen.items()}
        else:
            outputs = read(answer.parts, answer.data)
        if not answer.late:
            return split(outputs, owed.rows)
        gone = frozenset(answer.late)
        rows = [count for place, count in enumerate(owed.rows) if place not in gone]
        answers = iter(split(outputs, rows) if rows else ())
        return [too_late() if place in gone else next(answers) for place in range(len(owed.rows))]

    def _settle(self, id: str, outcome: Sequence[Tensors | PenstockError] | PenstockError, used_bytes: int) -> None:
        owed = self._owed.pop(id, None)
        if owed is None:
            return
        self._release(owed.slot, used_bytes)
        if not self._owed:
            self._is_idle.set()
        if owed.future.done():
            return
        if isinstance(outcome, PenstockError):
            owed.future.set_exception(outcome)
        else:
            owed.future.set_result(outcome)

    def _release(self, slot: int, used_bytes: int) -> None:
        if slot != NO_SLOT:
            self._free.append(slot)
            if used_bytes:
                self._slots[slot].used(used_bytes)

    def _gone(self) -> None:
        self.has_loaded.set()
        self._is_idle.set()
