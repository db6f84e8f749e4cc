"""The way up for texts: a server of OpenAI's API that is asked for exactly the version that a promise was made with.

Owns a connection for each model that escalates, made when it is first needed: an agent starts offline. Whether a text
should go up is ``edge_agent.policy.text_cascade``; how servers are asked is ``penstock.hosting.generation.remote``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from edge_agent.serving.hosting import Hosted
from edge_agent.settings import EscalationSettings
from penstock.errors import DeadlineExceeded, PenstockError, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.remote import RemoteGenerator
from penstock.hosting.generation.settings import RemoteSettings
from penstock.policy.retry import CircuitBreaker
from penstock.wire.tls import Tls

Events = AsyncGenerator[TokenEvent, None]

# of the longest wait for a first token: a request that gave less time says nothing about the cloud when it got none
_TELLING_SHARE = 0.1


class CloudText:
    """The way up for one model version. All methods are called from the event loop."""

    def __init__(
        self,
        hosted: Hosted,
        url: str,
        settings: EscalationSettings,
        remote: RemoteSettings,
        token: str,
        tls: Tls | None = None,
    ) -> None:
        plan = hosted.plan
        self._name, self._url, self._facts = plan.model, url, hosted.texts.facts
        self._asked_for = f"{plan.model}@{plan.artifact_digest}" if settings.model_version else plan.model
        self._settings, self._remote, self._token, self._tls = settings, remote, token, tls
        self._shares_tokenizer = plan.shares_tokenizer
        self._loop = asyncio.get_running_loop()
        self._generator: RemoteGenerator | None = None
        self._starting = asyncio.Lock()
        self._asking = 0
        self._is_closed = False
        self._breaker = CircuitBreaker(
            failure_limit=settings.breaker_failures,
            open_s=settings.breaker_open_s,
            max_open_s=max(settings.breaker_open_s, settings.breaker_max_open_s),
        )

    def __repr__(self) -> str:
        return f"CloudText({self._asked_for}, {self._breaker.phase})"

    @property
    def is_reachable(self) -> bool:
        """Say whether the cloud may be asked: yes before any try."""
        return self._breaker.phase == "closed" or self._breaker.wait_s(self._loop.time()) == 0.0

    @property
    def is_idle(self) -> bool:
        """Say whether nobody waits for the cloud, and it owes nobody the rest of an answer."""
        return not self._asking and (self._generator is None or not self._generator.outstanding)

    async def begin(self, request: GenerationRequest, *, deadline: float, priority: int = 0) -> Events:
        """Ask for an answer and wait for its first token; the events that are returned begin with it.

        Raises:
            DeadlineExceeded: no token in time. Unavailable: the cloud cannot be reached, or reads other ids.
            PenstockError: what it refused the request with.
        """
        self._asking += 1
        try:
            return await self._begun(request, deadline, priority)
        finally:
            self._asking -= 1

    async def _begun(self, request: GenerationRequest, deadline: float, priority: int) -> Events:
        if not self._shares_tokenizer:
            raise Unavailable(
                f"the cloud's variant of {self._name!r} has another tokenizer, to which these ids mean other text; "
                "build both models with one tokenizer"
            )
        self._breaker, may_ask = self._breaker.allows(self._loop.time())
        if not may_ask:
            raise Unavailable(f"{self._url} did not answer before", retry_after_s=self._settings.breaker_open_s)
        asked_at, longest_s = self._loop.time(), self._settings.first_token_timeout_s
        limit = min(deadline, asked_at + longest_s)
        try:
            async with asyncio.timeout_at(limit):
                generator = await self._started()
                events = generator.generate(request, deadline=deadline, priority=priority)
                try:
                    first = await anext(events)
                except BaseException:
                    await events.aclose()
                    raise
        except (TimeoutError, DeadlineExceeded):
            if limit - asked_at >= _TELLING_SHARE * longest_s:
                self._record(False)
            raise DeadlineExceeded(f"{self._url} sent no token in time") from None
        except Unavailable:
            self._record(False)
            raise
        self._record(True)
        return _beginning_with(first, events)

    async def close(self) -> None:
        """Give up what is under way and close the connections; nothing more is asked. Idempotent."""
        self._is_closed = True
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.close(0.0)

    async def _started(self) -> RemoteGenerator:
        async with self._starting:
            if self._is_closed:
                raise self._gone()
            if self._generator is None:
                made = RemoteGenerator(
                    self._name,
                    [self._url],
                    facts=self._facts,
                    model=self._asked_for,
                    settings=self._remote,
                    token=self._token or None,
                    tls=self._tls,
                )
                try:
                    await made.start()
                    if self._is_closed:  # meanwhile; nobody would close it any more
                        raise self._gone()
                except BaseException:
                    await made.close(0.0)
                    raise
                self._generator = made
            return self._generator

    def _gone(self) -> Unavailable:
        return Unavailable(f"{self._name} asks {self._url} no more: it is being unloaded", retry_after_s=1.0)

    def _record(self, success: bool) -> None:
        self._breaker = self._breaker.record(success, self._loop.time())


class CloudTexts:
    """All ways up for texts of this agent.

    Attributes:
        calls: generations that the cloud was asked for, audits included.
        failed_calls: of these, that it did not begin.
    """

    def __init__(
        self,
        url: str,
        settings: EscalationSettings,
        remote: RemoteSettings,
        *,
        token: str = "",
        tls: Tls | None = None,
    ) -> None:
        """
        Args:
            url: of the core, as ``http://host:8000``, or of any server of OpenAI's API.
            token: where the cloud has tenants.
            tls: which authorities to trust over TLS; None for what the environment says.
        """
        self._url, self._settings, self._remote, self._token, self._tls = url, settings, remote, token, tls
        self._ways: dict[Hosted, CloudText] = {}
        self.calls = self.failed_calls = 0

    def __repr__(self) -> str:
        return f"CloudTexts({list(self._ways.values())})"

    def of(self, hosted: Hosted) -> CloudText:
        """Return the way up for what this model escalates."""
        way = self._ways.get(hosted)
        if way is None:
            way = self._ways[hosted] = CloudText(
                hosted, self._url, self._settings, self._remote, self._token, self._tls
            )
        return way

    @property
    def is_reachable(self) -> bool:
        """Say whether the cloud can be asked: no when a model that answers cannot reach it; yes before any try."""
        return all(way.is_reachable for hosted, way in self._ways.items() if not hosted.is_retired)

    async def begin(self, hosted: Hosted, request: GenerationRequest, *, deadline: float, priority: int = 0) -> Events:
        """Ask for an answer; see :meth:`CloudText.begin`."""
        self.calls += 1
        try:
            return await self.of(hosted).begin(request, deadline=deadline, priority=priority)
        except BaseException:
            self.failed_calls += 1
            raise

    async def forget_retired(self) -> None:
        """Close the ways of models that answer no more, unless an answer still comes that way."""
        for hosted in [one for one, way in self._ways.items() if one.is_retired and way.is_idle]:
            await self._ways.pop(hosted).close()

    async def close(self) -> None:
        """Close every way."""
        for way in self._ways.values():
            with contextlib.suppress(PenstockError):
                await way.close()


async def _beginning_with(first: TokenEvent, rest: Events) -> Events:
    async with contextlib.aclosing(rest):
        yield first
        async for event in rest:
            yield event
