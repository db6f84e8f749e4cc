"""A generator whose engine runs in a process of its own: unloading it gives all memory back, and its crash stays there.

Starts a worker and asks it for one token before anybody may. That it is watched, and started again when it died or
hung, is ``penstock.hosting.workers.lives``; one life of it is ``penstock.hosting.generation.worker_life``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import replace

import msgspec

from penstock.errors import DeadlineExceeded, QueueFull, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.frames import Begin, Model, Report
from penstock.hosting.generation.generator import Counts, Load, Measures, Totals
from penstock.hosting.generation.settings import GenerationSettings
from penstock.hosting.generation.worker_life import WorkerLife
from penstock.hosting.replica import Health, clock_of
from penstock.hosting.workers.lives import Lives
from penstock.process.telemetry import LogSettings
from penstock.runtime.generation import EngineFacts

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
        self._facts: EngineFacts | None = None
        worker = self._settings.worker
        self._past = Totals()
        self._lives = Lives(
            name,
            worker.restarts(),
            self._started,
            hang_s=worker.hang_s,
            exit_s=worker.exit_s,
            account=self._add,
        )

    def __repr__(self) -> str:
        return f"ProcessGenerator({self.name!r}, {self._lives})"

    @property
    def facts(self) -> EngineFacts:
        """Return what the engine can take; known after :meth:`start`."""
        if self._facts is None:
            raise self._lives.unavailable()
        return self._facts

    @property
    def pid(self) -> int | None:
        """Return the worker's process id; None while there is none that answers."""
        worker = self._lives.current
        return None if worker is None else worker.pid

    @property
    def outstanding(self) -> int:
        """Return the number of generations that wait or run."""
        worker = self._lives.current
        return 0 if worker is None else worker.unanswered

    def counts(self) -> Counts:
        """Return what it has done and has to do."""
        lives = self._lives
        return Counts(
            load=Load() if lives.current is None else lives.current.load,
            totals=self._past if lives.current is None else self._past.plus(lives.current.totals),
            starts=lives.starts,
            crashes=lives.crashes,
            hangs=lives.hangs,
        )

    async def start(self) -> None:
        """Start the worker and wait for its first token. A failure is final: whoever loads a model hears why at once.

        Raises:
            Unavailable: the process ended, or made no token in time. PenstockError: what it said about the model.
        """
        await self._lives.start()

    async def generate(
        self, request: GenerationRequest, *, deadline: float, priority: int = 0
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer one request, as :meth:`penstock.hosting.generation.generator.Generator.generate`.

        Args:
            priority: 1 highest, larger lower, 0 the default.
        """
        worker = self._lives.answering()
        assert worker.facts is not None, "it has made a token"
        left_s = deadline - clock_of(asyncio.get_running_loop())()
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
        return self._lives.health()

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, and end the process; idempotent."""
        await self._lives.close(timeout_s)

    def _add(self, life: WorkerLife) -> None:
        self._past = self._past.plus(life.totals)

    async def _started(self) -> WorkerLife:
        """Begin a life and wait for its first token: only then does anybody else ask.

        Raises:
            Unavailable: the process ended, or made no token in time. PenstockError: what it said about the model.
        """
        worker = WorkerLife(self._settings.worker, self._seen)
        limit_s = self._settings.worker.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await worker.begin(self._begin)
                await worker.has_loaded.wait()
                if worker.facts is None:
                    how = await worker.end(_AFTER_EOF_S)
                    raise worker.complaint or Unavailable(f"its process ended while it loaded: {how}")
                await _first_token(worker)
        except TimeoutError:
            await worker.end(0.0)
            raise Unavailable(f"it made no token within {limit_s:g} s of its start", retry_after_s=1.0) from None
        except BaseException:
            worker.kill()
            await asyncio.shield(worker.end(0.0))
            raise
        self._facts = worker.facts
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
