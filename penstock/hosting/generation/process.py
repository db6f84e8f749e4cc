"""A generator whose engine runs in a process of its own: unloading it gives all memory back, and its crash stays there.

Owns the lives of the worker, one after the other: starts it, asks it for one token before anybody may, looks whether it
moves, kills what hangs, and starts it again a bounded number of times. A life itself is
``penstock.hosting.generation.worker_life``; what is decided about it is ``penstock.policy.worker_health``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import msgspec

from penstock.errors import DeadlineExceeded, PenstockError, QueueFull, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.frames import Begin, Model, Report
from penstock.hosting.generation.generator import Counts, Load, Measures, Totals
from penstock.hosting.generation.settings import GenerationSettings
from penstock.hosting.generation.worker_life import WorkerLife
from penstock.hosting.replica import WELL, Health, clock_of
from penstock.policy.worker_health import LOOKS, Restarts, Watch
from penstock.process.telemetry import LogSettings, log
from penstock.runtime.generation import EngineFacts

_log = logging.getLogger(__name__)
_AFTER_EOF_S = 1.0  # a process that closed its pipe is about to end, and its exit status says why


class ProcessGenerator:
    """One language model in a process of its own. Everything here happens on one event loop.

    >>> generator = ProcessGenerator("tiny", model=Model(engine="scripted", directory="/models/tiny"))
    >>> await generator.start()
    >>> async with contextlib.aclosing(generator.generate(request, deadline=loop.time() + 30)) as events: ...
    """

    def __init__(
        self,
        name: str,
        *,
        model: Model,
        settings: GenerationSettings | None = None,
        log_settings: LogSettings | None = None,
        measures: Measures | None = None,
    ) -> None:
        """
        Args:
            name: of the model, for messages and logs.
            model: what the worker loads.
            settings: None for the defaults.
            log_settings: how the worker logs to the stderr that it shares with us.
        """
        self.name = name
        self._settings, self._measures = settings or GenerationSettings(), measures
        threads = self._settings.worker.threads or model.options.threads
        self._begin = Begin(
            model=msgspec.structs.replace(model, options=replace(model.options, threads=threads)),
            line=self._settings.line,
            nice=self._settings.worker.nice,
            max_pipe_bytes=self._settings.worker.max_pipe_bytes,
            log=log_settings,
        )
        self._worker: WorkerLife | None = None  # the one that answers; None while there is none
        self._facts: EngineFacts | None = None
        self._why = "it was not started"
        self._retry_at = 0.0
        self._start_takes_s = 0.0
        self._restarts: Restarts = self._settings.worker.restarts()
        self._past = Totals()
        self._starts = self._crashes = self._hangs = 0
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False
        self._now: Callable[[], float] | None = None

    def __repr__(self) -> str:
        return f"ProcessGenerator({self.name!r}, {self._worker or self._why})"

    @property
    def facts(self) -> EngineFacts:
        """Return what the engine can take; known after :meth:`start`."""
        if self._facts is None:
            raise self._unavailable()
        return self._facts

    @property
    def pid(self) -> int | None:
        """Return the worker's process id; None while there is none that answers."""
        return None if self._worker is None else self._worker.pid

    @property
    def outstanding(self) -> int:
        """Return the number of generations that wait or run."""
        return 0 if self._worker is None else len(self._worker.answers)

    def counts(self) -> Counts:
        """Return what it has done and has to do."""
        worker = self._worker
        return Counts(
            load=Load() if worker is None else worker.load,
            totals=self._past if worker is None else self._past.plus(worker.totals),
            starts=self._starts,
            crashes=self._crashes,
            hangs=self._hangs,
        )

    async def start(self) -> None:
        """Start the worker and wait for its first token. A failure is final: whoever loads a model hears why at once.

        Raises:
            Unavailable: the process ended, or made no token in time. PenstockError: what it said about the model.
        """
        self._now = clock_of(asyncio.get_running_loop())
        self._why = "it is being loaded"
        try:
            worker = await self._started()
        except PenstockError as error:
            self._why = f"it could not be loaded: {error.message}"
            raise
        self._task = asyncio.create_task(self._supervise(worker), name=f"generator {self.name}")

    async def generate(
        self, request: GenerationRequest, *, deadline: float, priority: int = 0
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer one request, as :meth:`penstock.hosting.generation.generator.Generator.generate`.

        Args:
            priority: 1 highest, larger lower, 0 the default.
        """
        worker = self._worker
        if worker is None or worker.facts is None or self._now is None or self._is_closing:
            raise self._unavailable()
        left_s = deadline - self._now()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the work could start; nothing was executed")
        if len(worker.answers) >= worker.facts.slots + self._settings.line.max_waiting:
            raise QueueFull(
                f"{len(worker.answers)} generations of {self.name} run or wait, which is the limit (max_waiting)",
                retry_after_s=self._settings.line.retry_after_s,
            )
        answer = worker.ask(request, left_s=left_s, priority=priority)
        try:
            while True:
                event = await answer.next(deadline)
                yield event
                if event.finish is not None:
                    return
        finally:
            worker.give_up(answer)

    def health(self) -> Health:
        """Say whether it makes tokens: it has made one since it was started, and does not stand still."""
        return WELL if self._worker is not None and not self._is_closing else Health(False, self._why)

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, and end the process; idempotent."""
        self._is_closing, self._why = True, "it is being unloaded"
        worker = self._worker
        if worker is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.is_idle.wait(), timeout_s)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.fail_all(self._unavailable)
            self._past = self._past.plus(worker.totals)
            await worker.end(self._settings.worker.exit_s)
        self._why = "it is closed"

    # -- one life after the other ---------------------------------------------------------------------------------

    async def _supervise(self, worker: WorkerLife | None) -> None:
        """Watch each life to its end and begin the next one, as often as it may be."""
        assert self._now is not None
        try:
            while worker is not None:
                ready_at = self._now()
                try:
                    is_hung = await self._watch(worker)
                    await self._ended(worker, is_hung, was_ready_s=self._now() - ready_at)
                finally:  # also where closing cancels this
                    worker.fail_all(self._unavailable)
                worker = await self._restarted()
        except Exception as error:  # a defect of ours: nobody would look after the worker any more
            log(_log, logging.ERROR, "generator is given up", exc_info=error, model=self.name)
            self._why, self._retry_at = f"nobody watches it any more: {error!r}", math.inf
            left, self._worker = self._worker, None
            if left is not None:
                left.fail_all(self._unavailable)
                await left.end(0.0)

    async def _watch(self, worker: WorkerLife) -> bool:
        """Wait until a life is over; say whether that is because the worker does not move."""
        settings, watch, idle_looks = self._settings.worker, Watch(), 0
        look_s = settings.hang_s / LOOKS
        while not worker.is_gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.is_gone.wait(), look_s)
            has_work = bool(worker.answers) or worker.is_pinged
            watch = watch.look(progress=worker.totals.steps, has_work=has_work)
            if watch.is_hung:
                return True
            idle_looks = 0 if has_work else idle_looks + 1
            if settings.idle_ping_s and idle_looks * look_s >= settings.idle_ping_s:
                worker.ping()
                idle_looks = 0
        return False

    async def _ended(self, worker: WorkerLife, is_hung: bool, *, was_ready_s: float) -> None:
        """Account for a life that ended by itself, and tell those whose generations it took along."""
        assert self._now is not None
        self._worker, self._why = None, "its process has ended"
        how = await worker.end(0.0 if is_hung else _AFTER_EOF_S)
        if is_hung:
            self._hangs += 1
            how = f"it had work and made no step for {self._settings.worker.hang_s:g} s, and was killed"
        elif worker.complaint is not None:
            how = worker.complaint.message
        self._crashes += not is_hung
        self._past = self._past.plus(worker.totals)
        self._fail(how, was_ready_s, stood_still_s=self._settings.worker.hang_s if is_hung else 0.0)
        lost = len(worker.answers)
        log(_log, logging.ERROR, "generator lost", model=self.name, why=how, generations=lost)

    def _fail(self, how: str, was_ready_s: float, *, stood_still_s: float = 0.0) -> None:
        """Count a failure and set when the next start is due."""
        assert self._now is not None
        self._restarts = self._restarts.after_failure(was_ready_s=was_ready_s, stood_still_s=stood_still_s)
        if self._restarts.is_over:
            self._why = f"its process failed {self._restarts.failures} times in a row, the last time: {how}"
            self._retry_at = math.inf
            return
        self._why = f"its process failed and is started again: {how}"
        if self._restarts.is_slow:
            self._why = (
                f"its process failed {self._restarts.failures} times in a row and is started again now and then, "
                f"within {self._restarts.slow_s:g} s; the last time: {how}"
            )
        self._retry_at = self._now() + self._restarts.delay_s(random.random())

    async def _restarted(self) -> WorkerLife | None:
        """Start the worker again, as often as it may be; None when it stays down."""
        assert self._now is not None
        while not self._restarts.is_over:
            await asyncio.sleep(max(0.0, self._retry_at - self._now()))
            try:
                return await self._started()
            except PenstockError as error:
                self._crashes += 1
                self._fail(error.message, 0.0)
                log(_log, logging.WARNING, "generator not started", model=self.name, why=self._why)
        log(_log, logging.ERROR, "generator stays down", model=self.name, why=self._why)
        return None

    async def _started(self) -> WorkerLife:
        """Begin a life and wait for its first token: only then does anybody else ask.

        Raises:
            Unavailable: the process ended, or made no token in time. PenstockError: what it said about the model.
        """
        assert self._now is not None
        worker, began_at = WorkerLife(self._settings.worker, self._seen), self._now()
        limit_s = self._settings.worker.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await worker.begin(self._begin)
                await worker.has_loaded.wait()
                if worker.facts is None:
                    how = await worker.end(_AFTER_EOF_S)
                    raise worker.complaint or Unavailable(f"its process ended while it loaded: {how}")
                await _first_token(worker)
                if self._is_closing:
                    raise self._unavailable()
        except TimeoutError:
            await worker.end(0.0)
            raise Unavailable(f"it made no token within {limit_s:g} s of its start", retry_after_s=1.0) from None
        except BaseException:
            worker.kill()
            await asyncio.shield(worker.end(0.0))
            raise
        self._facts, self._worker, self._why = worker.facts, worker, ""
        self._starts += 1
        self._start_takes_s = self._now() - began_at
        log(_log, logging.INFO, "generator ready", model=self.name, pid=worker.pid, slots=worker.facts.slots)
        return worker

    def _seen(self, report: Report) -> None:
        if self._measures is None:
            return
        for seconds in report.times.queued_s:
            self._measures.queued(seconds)
        for seconds in report.times.first_token_s:
            self._measures.first_token(seconds)
        for seconds in report.times.between_tokens_s:
            self._measures.between_tokens(seconds)

    def _unavailable(self) -> PenstockError:
        """Make the error for whoever asks now; who comes back when it says so finds a worker that has loaded."""
        left_s = 1.0
        if self._now is not None and not self._is_closing:
            left_s = self._retry_at + self._start_takes_s - self._now()
        retry_after_s = None if left_s == math.inf else max(1.0, left_s)
        return Unavailable(f"{self.name} cannot answer: {self._why or 'try again'}", retry_after_s=retry_after_s)


async def _first_token(worker: WorkerLife) -> None:
    """Wait for one token, or for the end of who should make it.

    Raises:
        Unavailable: it ended. PenstockError: what it said about itself, or about the token.
    """
    answer = worker.ask(_probe(), left_s=math.inf)
    token = asyncio.ensure_future(answer.next(math.inf))
    gone = asyncio.ensure_future(worker.is_gone.wait())
    try:
        await asyncio.wait({token, gone}, return_when=asyncio.FIRST_COMPLETED)
        if token.done():
            token.result()
            return
    finally:
        token.cancel()
        gone.cancel()
    how = await worker.end(_AFTER_EOF_S)
    raise worker.complaint or Unavailable(f"its process ended before its first token: {how}")


def _probe() -> GenerationRequest:
    """Make the smallest generation there is: one token after the first one of the vocabulary."""
    return GenerationRequest(id="probe", prompt_ids=(0,), max_new_tokens=1, ignore_end=True)
