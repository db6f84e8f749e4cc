"""A generator whose engine is a server that we start, watch and end: a model that is sharded over several processes.

Joins what is there already: ``penstock.hosting.workers.lives`` starts one life after the other, and
``penstock.hosting.generation.remote`` asks it, as it asks servers of others. Which server, and how it is told what to
do, is ``penstock.hosting.generation.managed.vllm``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from penstock.errors import PenstockError, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.generator import Counts, Load, Measures, Totals
from penstock.hosting.generation.managed.life import Program, ServerLife
from penstock.hosting.generation.remote import RemoteGenerator
from penstock.hosting.generation.settings import RemoteSettings
from penstock.hosting.replica import Health
from penstock.hosting.workers.lives import Lives
from penstock.policy.worker_health import Restarts
from penstock.runtime.generation import EngineFacts

_UNTIL_GONE_S = 0.5  # from a connection that breaks to the end of who broke it, which says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a managed server may take for what it does.

    Attributes:
        start_timeout_s: from the start of its process to its first token.
        hang_s: without a token though it is asked for some.
        exit_s: to end when it is told to, before it is killed.
        restarts: how often it is started again.
    """

    start_timeout_s: float
    hang_s: float
    exit_s: float
    restarts: Restarts


class ManagedGenerator:
    """One language model that a server of ours runs. Everything here happens on one event loop."""

    def __init__(
        self,
        name: str,
        *,
        program: Program,
        limits: Limits,
        remote: RemoteSettings,
        facts: EngineFacts,
        measures: Measures | None = None,
    ) -> None:
        """
        Args:
            name: of the model, here and there.
            remote: how the server is asked.
            facts: what it can take; requests are held to it before they leave.
        """
        self.name, self._facts = name, facts
        self._program, self._limits, self._remote, self._measures = program, limits, remote, measures
        self._past = Totals()
        self._lives = Lives(
            name,
            limits.restarts,
            self._started,
            hang_s=limits.hang_s,
            exit_s=limits.exit_s,
            account=self._add,
        )

    def __repr__(self) -> str:
        return f"ManagedGenerator({self.name!r}, {self._lives})"

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def pid(self) -> int | None:
        """Return the id of the server's process group; None while there is none that answers."""
        life = self._lives.current
        return None if life is None else life.pid

    @property
    def outstanding(self) -> int:
        """Return the number of generations that the server owes us."""
        life = self._lives.current
        return 0 if life is None else life.unanswered

    async def start(self) -> None:
        """Start the server and wait for its first token. A failure is final: whoever loads a model hears why at once.

        Raises:
            Unavailable: it ended, or made no token in time.
        """
        await self._lives.start()

    async def generate(
        self, request: GenerationRequest, *, deadline: float, priority: int = 0
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer one request, as :meth:`penstock.hosting.generation.generator.Generator.generate`. The server knows no
        priority.
        """
        life = self._lives.answering()
        try:
            async with aclosing(life.remote.generate(request, deadline=deadline, priority=priority)) as events:
                async for event in events:
                    yield event
        except Unavailable as error:
            raise await self._explained(life, error) from error

    def counts(self) -> Counts:
        """Return what it has done and has to do."""
        lives = self._lives
        return Counts(
            load=Load() if lives.current is None else Load(running=lives.current.unanswered),
            totals=self._past if lives.current is None else self._past.plus(lives.current.totals),
            starts=lives.starts,
            crashes=lives.crashes,
            hangs=lives.hangs,
        )

    def health(self) -> Health:
        """Say whether it makes tokens."""
        health, life = self._lives.health(), self._lives.current
        return life.remote.health() if health.is_well and life is not None else health

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, tell the server to end, and kill what does not; idempotent."""
        await self._lives.close(timeout_s)

    def _add(self, life: ServerLife) -> None:
        self._past = self._past.plus(life.totals)

    async def _started(self) -> ServerLife:
        limit_s = self._limits.start_timeout_s
        life = ServerLife(self._program, self._asking, self._limits.hang_s)
        try:
            async with asyncio.timeout(limit_s):
                await life.begin()
        except TimeoutError:
            why = life.remote.health().why
            how = await life.end(0.0)
            raise Unavailable(f"no token within {limit_s:g} s of its start: {why}; {how}", retry_after_s=1.0) from None
        except BaseException:
            await asyncio.shield(life.end(0.0))
            raise
        return life

    def _asking(self, url: str) -> RemoteGenerator:
        return RemoteGenerator(self.name, [url], facts=self._facts, settings=self._remote, measures=self._measures)

    async def _explained(self, life: ServerLife, error: PenstockError) -> PenstockError:
        """Say what became of the server rather than of the connection to it, where it is about to be known."""
        if self._lives.is_closing:
            return error
        if not life.is_hung:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(life.has_ended.wait(), _UNTIL_GONE_S)
        why = error.message.removeprefix(f"{life.url}: ")
        if life.how:
            why = f"its server has ended: {life.how}"
        return Unavailable(f"{self.name}: {why}", retry_after_s=self._retry_after_s(error))

    def _retry_after_s(self, error: PenstockError) -> float | None:
        return error.retry_after_s if self._lives.health().is_well else self._lives.unavailable().retry_after_s
