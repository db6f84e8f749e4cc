"""A generator whose engine is somebody else's: servers of OpenAI's API behind URLs, each a replica of one model.

Owns what each server owes us and whether it may be asked; one server is ``penstock.hosting.generation.remote_server``.
A server is ready after one token, not when its port is open or its health says so, and hangs when it owes answers and
sends none. What failed before its first token is asked of another server; after that it ends in an error. Does not
start or end these servers: whoever runs them does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, cast

from penstock.errors import ConfigError, DeadlineExceeded, Internal, PenstockError, QueueFull, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.answer import Answer
from penstock.hosting.generation.generator import Counts, Load, Measures, Totals
from penstock.hosting.generation.remote_server import ELSEWHERE, RemoteServer, parsed
from penstock.hosting.generation.settings import RemoteSettings
from penstock.hosting.replica import WELL, Health, clock_of
from penstock.policy.balancing import Owes, choose
from penstock.policy.prefixes import blocks_of
from penstock.policy.worker_health import LOOKS, Watch
from penstock.process.telemetry import log
from penstock.runtime.generation import EngineFacts
from penstock.runtime.generation.requests import check
from penstock.wire.tls import Tls

_log = logging.getLogger(__name__)
_DRAIN_S = 1.0  # from the last token to the end of the stream, after which its connection can be used again


class RemoteGenerator:
    """One language model that servers of others run. Everything here happens on one event loop."""

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        *,
        facts: EngineFacts,
        model: str = "",
        settings: RemoteSettings | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        measures: Measures | None = None,
    ) -> None:
        """
        Args:
            name: of the model here.
            facts: what each server can take; requests are held to it before they leave.
            model: what the servers call it; "" for ``name``.
            token: a bearer token for all of them.
            tls: which authorities to trust over TLS; None for what the environment says.

        Raises:
            ConfigError: no URLs, or one that is none.
        """
        if not urls:
            raise ConfigError(f"{name}: no URLs of servers that generate")
        for url in urls:
            parsed(url)
        self.name, self._facts = name, facts
        self._urls, self._model, self._token, self._tls = tuple(urls), model or name, token, tls
        self._settings = settings or RemoteSettings()
        self._servers: list[RemoteServer] = []
        self._now: Callable[[], float] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._has_begun = asyncio.Event()
        self._measures = measures
        self._counts = dict.fromkeys(Totals.__struct_fields__, 0)
        self._starts = self._failures = self._hangs = 0

    def __repr__(self) -> str:
        return f"RemoteGenerator({self.name!r}, {self._servers})"

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def outstanding(self) -> int:
        """Return the number of generations that servers owe us."""
        return sum(len(server.owes) for server in self._servers)

    async def start(self, *, patience_s: float = 0.0) -> None:
        """Ask every server for one token and wait until one has made it; the others may follow later.

        Args:
            patience_s: go on asking for so long where none has; servers may take minutes to load.

        Raises:
            Unavailable: none did.
        """
        self._now = clock_of(asyncio.get_running_loop())
        self._servers = [RemoteServer(url, self._model, self._settings, self._token, self._tls) for url in self._urls]
        first_round = [self._spawn(self._probe(server)) for server in self._servers]
        self._spawn(self._watch())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.start_timeout_s):
                while first_round and not self._has_begun.is_set():
                    _, left = await asyncio.wait(first_round, return_when=asyncio.FIRST_COMPLETED)
                    first_round = list(left)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_begun.wait(), patience_s)
        if not self._has_begun.is_set():
            why = self.health().why
            await self.close(0.0)
            raise Unavailable(f"{self.name}: no server made a token: {why}", retry_after_s=self._settings.retry_s)

    async def generate(
        self, request: GenerationRequest, *, deadline: float, priority: int = 0
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer one request, as :meth:`penstock.hosting.generation.generator.Generator.generate`. These servers know
        no priority. An event's token is -1 where a server told no id.
        """
        if self._now is None or self._is_closing:
            raise Unavailable(f"{self.name} cannot answer: {self.health().why}", retry_after_s=1.0)
        if deadline <= self._now():
            raise DeadlineExceeded("the deadline passed before the work could start; nothing was executed")
        check(request, self._facts, ())
        answer = Answer(request.id, self._settings.max_unread_events)
        task, is_whole = self._spawn(self._pump(request, answer)), False
        told_at, told = self._now(), 0
        try:
            while not is_whole:
                event = await answer.next(deadline)
                is_whole = event.finish is not None
                told_at, told = self._tell(told_at, told, self._now()), told + 1
                if event.usage is not None:
                    self._add(prompt_tokens=event.usage.prompt_tokens, cached_tokens=event.usage.cached_tokens)
                yield event
        finally:
            self._add(completion_tokens=told, ended=int(is_whole), cut_off=int(not is_whole))
            if not is_whole:
                task.cancel()

    def counts(self) -> Counts:
        """Return what it has done and has to do; how much memory that takes there, nobody tells."""
        return Counts(
            load=Load(running=self.outstanding),
            totals=Totals(**self._counts),
            starts=self._starts,
            crashes=self._failures,
            hangs=self._hangs,
        )

    def health(self) -> Health:
        """Say whether a server makes tokens."""
        if self._is_closing:
            return Health(False, "it is closed")
        if any(server.has_answered and server.breaker.phase == "closed" for server in self._servers):
            return WELL
        reasons = [f"{server.url}: {server.why}" for server in self._servers]
        return Health(False, "; ".join(reasons) or "it was not started")

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, and close all connections; idempotent."""
        self._is_closing = True
        await self.drained(timeout_s)
        self.fail_all(lambda: Unavailable("the model is being unloaded", retry_after_s=self._settings.retry_after_s))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.close()

    async def drained(self, timeout_s: float) -> None:
        """Wait until nothing is owed any more, for as long as that."""
        pumps = [task for server in self._servers for task in server.owes]
        if pumps and timeout_s > 0:
            await asyncio.wait(pumps, timeout=timeout_s)

    def fail_all(self, error: Callable[[], PenstockError]) -> None:
        """End every generation that has not ended, each with an error of its own."""
        for server in self._servers:
            self._give_up(server, error)

    def _tell(self, told_at: float, told: int, now: float) -> float:
        if self._measures is not None:
            tell = self._measures.between_tokens if told else self._measures.first_token
            tell(now - told_at)
        return now

    def _add(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counts[name] += count

    # -- one generation -------------------------------------------------------------------------------------------

    async def _pump(self, request: GenerationRequest, answer: Answer) -> None:
        """Bring a generation to its reader, from the first server that begins it."""
        try:
            error = await self._brought(request, answer)
        except Exception as defect:
            log(_log, logging.ERROR, "generation failed", exc_info=defect, model=self.name)
            answer.fail(Internal(f"{self.name}: {type(defect).__name__}: {defect}"))
        except asyncio.CancelledError:  # closing, or a reader that has gone
            answer.fail(Unavailable(f"{self.name} is being unloaded", retry_after_s=1.0))
            raise
        else:
            if error is not None:
                answer.fail(error)

    async def _brought(self, request: GenerationRequest, answer: Answer) -> PenstockError | None:
        """Try one server after the other; return the error that ended the last one, None where an answer came."""
        tried: list[RemoteServer] = []
        is_choice = len(self._servers) > 1
        blocks = blocks_of(request.prompt_ids, self._settings.prefix_block_tokens) if is_choice else ()
        while True:
            server = self._chosen(blocks, tried)
            if isinstance(server, PenstockError):
                return server
            error = await self._ask(server, request, blocks, answer)
            tried.append(server)
            is_last = len(tried) == len(self._servers)
            if error is None or answer.has_begun or is_last or not isinstance(error, ELSEWHERE):
                return error
            log(_log, logging.INFO, "generation goes to another server", model=self.name, why=error.message)

    def _chosen(self, blocks: Sequence[int], tried: Sequence[RemoteServer]) -> RemoteServer | PenstockError:
        owes = [
            Owes(
                generations=len(server.owes),
                tokens=sum(server.owes.values()),
                cached_tokens=self._cached_tokens(server, blocks),
                is_left_alone=server.breaker.phase != "closed" or not server.has_answered,
                was_tried=server in tried,
            )
            for server in self._servers
        ]
        limit, retry_after_s = self._settings.max_outstanding, self._settings.retry_after_s
        chosen = choose(owes, max_outstanding=limit, retry_after_s=retry_after_s)
        return chosen if isinstance(chosen, PenstockError) else self._servers[chosen]

    def _cached_tokens(self, server: RemoteServer, blocks: Sequence[int]) -> int:
        return server.prefixes.known(blocks) * self._settings.prefix_block_tokens

    async def _ask(
        self, server: RemoteServer, request: GenerationRequest, blocks: Sequence[int], answer: Answer
    ) -> PenstockError | None:
        """Let one server answer; return the error that ended it, None where it came to an end."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        prompt_tokens = len(request.prompt_ids) - self._cached_tokens(server, blocks)
        server.owes[task] = prompt_tokens + request.max_new_tokens
        server.prefixes.add(blocks)
        server.answers[task] = answer
        try:
            async with aclosing(server.events(request)) as events:
                async for event in events:
                    if not answer.put(event):
                        return None
                    if event.finish is not None:
                        self._record(server, None)
                        server.forget(task)  # what it owed is there, even if its stream is not at an end
                        await _drained(events)
                        return None
        except PenstockError as error:
            self._record(server, error)
            return error
        finally:
            server.forget(task)
        return None

    def _record(self, server: RemoteServer, error: PenstockError | None) -> None:
        """Remember how a server did. One that is full of our requests, or that refuses one, works."""
        assert self._now is not None
        is_idle = len(server.owes) <= 1  # but for this one; who has nothing to do for us and is full is not well
        is_failure = isinstance(error, Unavailable | DeadlineExceeded) or (isinstance(error, QueueFull) and is_idle)
        server.breaker = server.breaker.record(not is_failure, self._now())
        if is_failure:
            assert error is not None
            self._failures += 1
            server.why = error.message.removeprefix(f"{server.url}: ")
            if server.breaker.phase != "closed":  # it may be another one when it is back
                server.prefixes.clear()
        elif error is None:
            self._starts += not server.has_answered
            server.has_answered, server.why = True, ""
            self._has_begun.set()

    # -- which servers move ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at every server at regular times: give up what hangs, and probe what was left alone for long enough."""
        assert self._now is not None
        look_s = min(self._settings.hang_s / LOOKS, self._settings.retry_s)
        while True:
            await asyncio.sleep(look_s)
            for server in self._servers:
                self._look(server, look_s)

    def _look(self, server: RemoteServer, look_s: float) -> None:
        assert self._now is not None
        has_moved = server.tokens != server.watch.progress
        server.watch = server.watch.look(progress=server.tokens, has_work=bool(server.owes))
        if server.watch.still * look_s >= self._settings.hang_s:
            owed = f"it owed {len(server.owes)} answers and sent no token for {self._settings.hang_s:g} s"
            self._hung(server, owed)
        if server.is_probed:
            return
        if server.has_answered and server.breaker.phase == "closed":
            server.idle_looks = 0 if server.owes or has_moved else server.idle_looks + 1
            is_due = 0 < self._settings.idle_probe_s <= server.idle_looks * look_s
        else:
            server.breaker, is_due = server.breaker.allows(self._now())
        if is_due:
            server.idle_looks = 0
            self._spawn(self._probe(server))

    def _hung(self, server: RemoteServer, why: str) -> None:
        assert self._now is not None
        log(_log, logging.ERROR, "server hangs", model=self.name, url=server.url, why=why)
        self._give_up(server, lambda: Unavailable(f"{server.url}: {why}", retry_after_s=self._settings.retry_after_s))
        self._hangs += 1
        server.why, server.watch = why, Watch()
        server.prefixes.clear()
        server.breaker = server.breaker.record(False, self._now())
        while server.breaker.phase == "closed":  # more than one failure: it is left alone at once
            server.breaker = server.breaker.record(False, self._now())

    def _give_up(self, server: RemoteServer, error: Callable[[], PenstockError]) -> None:
        for task, answer in list(server.answers.items()):
            answer.fail(error())
            task.cancel()

    async def _probe(self, server: RemoteServer) -> None:
        """Ask a server for one token, to see whether it may be asked for more."""
        probe = GenerationRequest(id="probe", prompt_ids=(0,), max_new_tokens=1)
        server.is_probed = True
        try:
            async with asyncio.timeout(self._settings.hang_s):
                async with aclosing(server.events(probe)) as events:
                    async for _ in events:
                        pass
        except TimeoutError:
            self._hung(server, f"no token within {self._settings.hang_s:g} s")
        except PenstockError as error:
            log(_log, logging.WARNING, "server does not answer", model=self.name, why=error.message)
            server.why = error.message.removeprefix(f"{server.url}: ")
            self._record(server, error)
        else:
            self._record(server, None)
            log(_log, logging.INFO, "server answers", model=self.name, url=server.url)
        finally:
            server.is_probed = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"generator {self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _drained(events: AsyncGenerator[TokenEvent, None]) -> None:
    with contextlib.suppress(TimeoutError, PenstockError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in events:
                pass
