"""A replica whose engine runs in a process of its own: a crash or a hang costs its own batches, unloading ends it.

Runs of a model leave nothing behind, so that what a worker left unanswered is run once more by the next one, each
request alone: whatever ends a worker twice is not run a third time, and its neighbours are answered. That workers are
watched, and started again when they died or hung, is ``penstock.hosting.workers.lives``'s; one life of one is
``penstock.hosting.process_replica.life``'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from penstock.errors import Internal, PenstockError, Unavailable
from penstock.hosting.process_replica.life import ReplicaLife, WorkerLost
from penstock.hosting.process_replica.messages import Loaded, Model
from penstock.hosting.process_replica.settings import ReplicaWorkerSettings
from penstock.hosting.replica import Chunk, Health, clock_of, too_late
from penstock.hosting.rows import Tensors
from penstock.hosting.workers.lives import Lives
from penstock.policy.run_times import Place
from penstock.policy.service_time import Timing
from penstock.process.telemetry import LogSettings, log

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounts:
    """What became of a replica's workers.

    Attributes:
        starts: of workers that were ready.
        crashes: ends of workers that nobody asked for.
        hangs: workers that were killed because a batch ran too long.
        retried: batches that a worker left unanswered and that were run again.
        pid: of the one that answers now; None while there is none.
    """

    starts: int
    crashes: int
    hangs: int
    retried: int
    pid: int | None


class ProcessReplica:
    """One worker process after the other, and the batches for it. Everything here happens on one event loop.

    Attributes:
        ahead: full batches that may wait in the worker while another one runs.
        is_isolated: what goes wrong with a worker stays there, and is mended here.
        disturbed: how often a batch was left unanswered, or had to wait for a worker.
    """

    ahead = 1
    is_isolated = True

    def __init__(
        self,
        name: str,
        model: Callable[[], Model],
        *,
        settings: ReplicaWorkerSettings,
        hang_s: float,
        log_settings: LogSettings | None = None,
        starting: asyncio.Lock | None = None,
    ) -> None:
        """
        Args:
            name: of the model, for messages and logs.
            model: verifies the files and says what to load; called in a thread, before each life.
            hang_s: a worker that runs one batch for longer is killed and started again.
            log_settings: how workers log to the stderr that they share with us.
            starting: held while a worker starts: several replicas of a variant unpack its files in one place.
        """
        self.name = name
        self._model, self._settings, self._hang_s, self._log = model, settings, hang_s, log_settings
        self._starting = starting or asyncio.Lock()
        self._facts: Loaded | None = None
        self._retried = self.disturbed = 0
        self._listeners: list[Callable[[], None]] = []
        self._change = asyncio.Event()
        self._lives = Lives(
            name, settings.restarts(), self._begun, hang_s=hang_s, exit_s=settings.exit_s, changed=self._changed
        )

    def __repr__(self) -> str:
        return f"ProcessReplica({self.name!r}, {self._lives})"

    @property
    def facts(self) -> Loaded:
        """Return what is known of the model, which has to be started.

        Raises:
            Unavailable: it was not.
        """
        if self._facts is None:
            raise self._lives.unavailable()
        return self._facts

    @property
    def max_batch(self) -> int:
        return self.facts.max_batch

    @property
    def timing(self) -> Timing:
        return self.facts.timing

    @property
    def pid(self) -> int | None:
        """Return the worker's process id; None while there is none that answers."""
        life = self._lives.current
        return None if life is None else life.pid

    def counts(self) -> WorkerCounts:
        """Return what became of its workers."""
        lives = self._lives
        return WorkerCounts(
            starts=lives.starts, crashes=lives.crashes, hangs=lives.hangs, retried=self._retried, pid=self.pid
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call somebody whenever its health may have changed."""
        self._listeners.append(listener)

    async def start(self, *, like: Loaded | None = None) -> Loaded:
        """Start a worker and wait until the model has proved itself there. A failure is final.

        Args:
            like: what another worker has found out about the same model, and this one need not.

        Raises:
            Unavailable: the process ended, or was not ready in time. PenstockError: what it said about the model.
        """
        self._facts = like
        await self._lives.start()
        return self.facts

    def place(self, chunks: Sequence[Chunk]) -> Place:
        """Say that they run elsewhere."""
        return Place.ELSEWHERE

    async def run(self, chunks: Sequence[Chunk]) -> Sequence[Tensors | PenstockError]:
        """Run chunks as one batch; where a worker dies of it, each of them alone.

        Raises:
            Unavailable: it is closed. PenstockError: the engine's error, for all of them.
        """
        if self._lives.is_closing:
            raise self._lives.unavailable()
        while True:
            life = await self._answering(chunks)
            if isinstance(life, PenstockError):
                return [life] * len(chunks)
            try:
                return await life.run(chunks)
            except WorkerLost as lost:
                self.disturbed += 1
                if lost.has_begun:
                    break
        if self._lives.is_closing:
            return [self._lives.unavailable()] * len(chunks)
        self._retried += 1
        return [await self._alone(chunk) for chunk in chunks]

    def unavailable(self) -> PenstockError:
        """Make the error for whoever asks while no worker answers."""
        return self._lives.unavailable()

    def health(self) -> Health:
        """Say whether a worker answers, and whether one soon will."""
        lives = self._lives
        health = lives.health()
        return health if health.is_well else Health(False, health.why, is_brief=self._is_brief)

    async def close(self) -> None:
        """End the worker: its memory is free whatever it was doing; idempotent."""
        await self._lives.close(0.0)

    @property
    def _is_brief(self) -> bool:
        return self._lives.back_in_s <= self._settings.restart_wait_s

    async def _alone(self, chunk: Chunk) -> Tensors | PenstockError:
        """Run a chunk of a batch that a worker died of; when another one dies of it alone, it is to blame."""
        while True:
            life = await self._answering([chunk])
            if isinstance(life, PenstockError):
                return life
            try:
                (answer,) = await life.run([chunk])
                return answer
            except PenstockError as error:
                return error
            except WorkerLost as lost:
                if self._lives.is_closing:
                    return self._lives.unavailable()
                if lost.has_begun:
                    log(_log, logging.ERROR, "request refused: two workers died of it", model=self.name, why=lost.why)
                    return Internal(f"two processes of the model died of this request, the last one: {lost.why}")

    async def _answering(self, chunks: Sequence[Chunk]) -> ReplicaLife | PenstockError:
        """Wait for a life that answers, as long as there should soon be one and one of the chunks has the time."""
        now = clock_of(asyncio.get_running_loop())
        deadline = max(chunk.deadline for chunk in chunks)
        while (life := self._lives.current) is None or self._lives.is_closing:
            left_s = deadline - now()
            if self._lives.is_closing or not self._is_brief:
                return self._lives.unavailable()
            if left_s <= 0:
                return too_late()
            self.disturbed += 1
            try:
                async with asyncio.timeout(None if left_s == math.inf else left_s):
                    await self._change.wait()
            except TimeoutError:
                return too_late()
        return life

    async def _begun(self) -> ReplicaLife:
        """Begin a life and wait until its model has proved itself.

        Raises:
            Unavailable: the process ended, or was not ready in time. PenstockError: what it said about the model.
        """
        async with self._starting:
            return await self._loaded()

    async def _loaded(self) -> ReplicaLife:
        model = await asyncio.to_thread(self._model)
        if self._facts is not None:  # what was found out once need not be measured again
            model = msgspec.structs.replace(model, threads=self._facts.threads, rows_mixed=self._facts.rows_mixed)
        life = ReplicaLife(self._settings, self._hang_s)
        limit_s = self._settings.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                self._facts = await life.begin(model, self._log)
        except TimeoutError:
            await life.end(0.0)
            raise Unavailable(f"it was not ready within {limit_s:g} s of its start", retry_after_s=1.0) from None
        except BaseException:
            life.process.kill()
            await asyncio.shield(life.end(0.0))
            raise
        return life

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        for listener in self._listeners:
            listener()
