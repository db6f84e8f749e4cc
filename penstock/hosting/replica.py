"""A replica: one place where a model runs. The port, and its form for an engine in this process.

An engine's replica runs on the event loop what is short and in a thread of its own what is not, decided for each batch
from what was seen (``penstock.policy.run_times``). Other forms (a worker process, another machine, a generating server)
keep to the port. A replica holds no queue: what runs together and when is ``penstock.hosting.replica_queue``'s.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Generic, Protocol, TypeVar

import numpy as np

from penstock.errors import DeadlineExceeded, PenstockError, Unavailable
from penstock.hosting.loading import Loaded
from penstock.hosting.rows import Tensors, join, split, work_of
from penstock.hosting.run_notes import RunNote
from penstock.policy.run_times import Place, RunTimes
from penstock.policy.service_time import Timing
from penstock.runtime import Engine
from penstock.wire.tensors import TensorSpec

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for each request, and freezing costs a microsecond
class Chunk:
    """The rows of one request. Chunks that run together want the same outputs.

    Attributes:
        inputs: checked, dimension 0 is the batch.
        outputs: names of the outputs wanted; None for all.
        deadline: when its answer is worth nothing any more, on the event loop's clock. What has not begun by then is
            not run.
        note: takes down its way for who observes requests; None where nobody does.
        tenant: whose share of the replica it takes, where tenants have shares.
        charged_s: what that share was charged for it in advance.
    """

    inputs: Tensors
    rows: int
    outputs: tuple[str, ...] | None = None
    deadline: float = math.inf
    note: RunNote | None = None
    tenant: str = ""
    charged_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a replica can answer, and why not.

    Attributes:
        is_brief: it should be well again so soon that requests may wait for it.
    """

    is_well: bool
    why: str = ""
    is_brief: bool = False


WELL = Health(True)


class Replica(Protocol[A_co]):
    """One place where a model runs, in this process or elsewhere.

    Its owner has one run under way at a time, and as many more as may be ahead.

    ``A`` is what answers a chunk. A classifier's is its outputs; one whose answer comes in parts, as a generation's
    does, answers with an asynchronous iterator of them: ``run`` returns when every chunk is taken in, a failure that
    comes later is raised where the iterator is read, and closing the iterator gives the rest up. Queues hand an answer
    on and never look into it, so both take the same way.

    Attributes:
        max_batch: most rows of a run; 1 where rows cannot be merged.
        timing: what warm-up found out.
        ahead: full batches that may be given to it while one runs, so that the way there costs no time.
        is_isolated: a run that crashes or hangs is ended and made good by the replica itself. Where it is not, a run
            that hangs is a reason to restart this process.
        disturbed: how often a run took longer for another reason than what was in it.
    """

    @property
    def max_batch(self) -> int: ...
    @property
    def timing(self) -> Timing: ...
    @property
    def ahead(self) -> int: ...
    @property
    def is_isolated(self) -> bool: ...
    @property
    def disturbed(self) -> int: ...

    def place(self, chunks: Sequence[Chunk]) -> Place:
        """Say where chunks would run together. ``run`` of what would not run elsewhere returns without suspending."""
        ...

    async def run(self, chunks: Sequence[Chunk]) -> Sequence[A_co | PenstockError]:
        """Run chunks together: for each, in order, its answer or the error that is its own.

        Raises:
            Exception: the run failed for all of them. One of them may be to blame: the caller runs them apart.
        """
        ...

    def health(self) -> Health:
        """Say whether it can answer. Asked often, so that it looks at what is known and waits for nothing."""
        ...

    async def close(self) -> None:
        """Wait for what runs, and release everything; idempotent."""
        ...


class EngineReplica(Generic[A]):
    """An engine in this process.

    Attributes:
        engine: runs in one thread at a time.
        thread: runs what would hold up the event loop.
        threads: of a run.
        rows_mixed: as loading has found out.
    """

    ahead = 0
    is_isolated = False
    disturbed = 0

    def __init__(
        self,
        loaded: Loaded,
        *,
        on_loop_below_s: float,
        answer: Callable[[Tensors, Tensors, int], A],
        split: Callable[[A, Sequence[int]], Sequence[A]],
        in_pieces: bool = False,
        thread: Executor | None = None,
    ) -> None:
        """
        Args:
            in_pieces: a request larger than ``max_batch`` is run in several: on a device memory is short. Elsewhere it
                is run whole, which is quicker, unless ``max_batch`` is 1: then each row runs alone.
            on_loop_below_s: what is expected to take longer runs in the thread; 0 for everything.
            answer: makes an answer from inputs, outputs and number of rows of a batch, where the engine runs.
            split: cuts a batch's answer into those of chunks of so many rows.
        """
        self.engine, self.timing, self.max_batch = loaded.engine, loaded.timing, loaded.max_batch
        self.threads, self.rows_mixed = loaded.threads, loaded.rows_mixed
        self.thread = thread or ThreadPoolExecutor(1, thread_name_prefix="replica")
        self._on_loop_below_s = on_loop_below_s
        self._answer, self._split = answer, split
        self._in_pieces = runs_in_pieces(loaded, in_pieces=in_pieces)
        self._times = _seen_at_warm_up(loaded)
        self._is_in_thread = False
        self._is_closed = False
        self._now: Callable[[], float] | None = None  # of the loop that it first runs in

    def __repr__(self) -> str:
        where = "on the loop" if self.is_always_short else "by what a batch is expected to take"
        return f"EngineReplica(max_batch={self.max_batch}, runs {where}, {self._times})"

    @property
    def is_always_short(self) -> bool:
        """Say whether nothing that may come is expected to leave the event loop: more replicas would be idle."""
        return self.longest_s < self._on_loop_below_s

    @property
    def longest_s(self) -> float:
        """Expect so many seconds of the largest batch; infinity where free shapes say nothing about it."""
        specs = self.engine.inputs
        if any(-1 in spec.shape[1:] or spec.datatype == "BYTES" for spec in specs):
            return math.inf
        return self._times.expected_s(_elements(specs, self.max_batch))

    def place(self, chunks: Sequence[Chunk]) -> Place:
        """Say where chunks would run together, from what was seen of runs of their size."""
        return self._times.place(_work(chunks), on_loop_below_s=self._on_loop_below_s)

    async def run(self, chunks: Sequence[Chunk]) -> Sequence[A | PenstockError]:
        """Run chunks as one batch, without those that are late when it begins.

        Raises:
            InvalidInput, Internal: from the engine, as other errors of its library. Unavailable: it is closed.
        """
        if self._is_closed:
            raise Unavailable("the model is being unloaded; try again", retry_after_s=1.0)
        if self._now is None:
            self._now = clock_of(asyncio.get_running_loop())
        work = _work(chunks)
        if self._times.expected_s(work) < self._on_loop_below_s:
            return self._run_in_time(chunks, work, self._now)
        self._is_in_thread = True
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.thread, self._run_in_time, chunks, work, self._now
            )
        finally:
            self._is_in_thread = False

    def health(self) -> Health:
        """Say whether it is open."""
        return Health(False, "closed") if self._is_closed else WELL

    async def close(self) -> None:
        """Wait for the run in the thread, if there is one, and release thread and engine; idempotent."""
        self._is_closed = True
        if self._is_in_thread:
            await asyncio.to_thread(self.thread.shutdown)
        self.thread.shutdown(wait=False)
        self.engine.close()

    def _run_in_time(self, chunks: Sequence[Chunk], work: int, now: Callable[[], float]) -> Sequence[A | PenstockError]:
        """Look at the clock where the run begins: planning, a turn of the loop and the way to a thread take time."""
        at = now()
        late = [chunk.deadline <= at for chunk in chunks]
        if not any(late):
            return self._run(chunks, work)
        wanted = [chunk for chunk, is_late in zip(chunks, late, strict=True) if not is_late]
        answers = iter(self._run(wanted, _work(wanted)) if wanted else ())
        return [too_late() if is_late else next(answers) for is_late in late]

    def _run(self, chunks: Sequence[Chunk], work: int) -> Sequence[A]:
        """Run where it is called, and learn how long that takes; one run at a time, so nobody else learns meanwhile."""
        started_at = time.perf_counter()
        rows = [chunk.rows for chunk in chunks]
        total = sum(rows)
        try:
            inputs = join([chunk.inputs for chunk in chunks])
            step = self.max_batch if self._in_pieces else total
            answer = self._answer(inputs, run_in_pieces(self.engine, inputs, total, step, chunks[0].outputs), total)
            parts = [answer] if len(rows) == 1 else self._split(answer, rows)
        except BaseException:
            took_s = time.perf_counter() - started_at
            if took_s > self._times.expected_s(work):  # what is refused at once says nothing about what is not
                self._times.observe(work, took_s)
            raise
        self._times.observe(work, time.perf_counter() - started_at)
        return parts


def outputs_replica(
    loaded: Loaded, *, on_loop_below_s: float, thread: Executor | None = None
) -> EngineReplica[Tensors]:
    """Make a replica that answers with a model's outputs."""
    return EngineReplica(
        loaded,
        on_loop_below_s=on_loop_below_s,
        answer=lambda inputs, outputs, rows: outputs,
        split=split,
        thread=thread,
    )


def runs_in_pieces(loaded: Loaded, *, in_pieces: bool = False) -> bool:
    """Say whether a batch larger than the largest one is cut: where that is asked for, and where rows run alone.

    A largest batch of one is no limit of memory: rows of one request may change each other's answers, too.
    """
    return loaded.timing.is_batchable and (in_pieces or loaded.max_batch == 1)


def run_in_pieces(
    engine: Engine, inputs: Tensors, rows: int, step: int, outputs: Sequence[str] | None = None
) -> Tensors:
    """Run a batch at once, or ``step`` rows at a time: a variant's largest batch is a limit of memory."""
    if rows <= step:
        return engine.run(inputs, outputs)
    pieces = [
        engine.run({name: array[start : start + step] for name, array in inputs.items()}, outputs)
        for start in range(0, rows, step)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the loop's clock as it is at any moment and in any thread.

    uvloop's own moves once a turn, in milliseconds; it has the same origin as ``time.monotonic``.
    """
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def too_late() -> DeadlineExceeded:
    """Make the error of what was not run because its deadline had passed."""
    return DeadlineExceeded("the deadline passed before the work could start; nothing was executed")


def _work(chunks: Sequence[Chunk]) -> int:
    return sum([work_of(chunk.inputs) for chunk in chunks])


def _seen_at_warm_up(loaded: Loaded) -> RunTimes:
    """Begin with the two runs of warm-up. A free dimension counts as 1, the least that may have been tried."""
    times = RunTimes()
    for rows, took_s in ((1, loaded.timing.one_row_s), (loaded.max_batch, loaded.timing.full_batch_s)):
        if took_s > 0.0:
            times.observe(_elements(loaded.engine.inputs, rows), took_s)
    return times


def _elements(specs: Sequence[TensorSpec], rows: int) -> int:
    """Count the elements of a batch."""
    return sum([(rows if spec.shape[:1] == (-1,) else 1) * prod(abs(dim) for dim in spec.shape) for spec in specs])
