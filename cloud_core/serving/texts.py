"""The text data plane behind every transport: tokenize, check limits and budgets, generate, account.

Admission, credentials and routing are ``cloud_core.serving.dataplane``'s, as for arrays. Owns what a generation adds to
them: what a prompt means, and what tokens cost a tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import UTC, datetime

from cloud_core.observing.finished import Note
from cloud_core.serving.dataplane import DataPlane, Ticket
from cloud_core.serving.served_text import ServedText, listed
from cloud_core.serving.token_accounts import TokenAccounts
from cloud_core.settings import ServingSettings
from cloud_core.state.spending import DaySpent
from cloud_core.tenants.settings import TenantSettings
from penstock.errors import InvalidInput
from penstock.generation.plane import TextAnswer, TextModel, TextRequest
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation import prompts
from penstock.hosting.generation.answer_cache import AnswerCache, cache_key
from penstock.policy.choices import choice_score
from penstock.wire.context import RequestContext
from penstock.wire.inference import Parameter


class TextPlane:
    """Answers texts; everything here runs on the event loop's thread.

    Attributes:
        accounts: what tenants have spent.
        cache: answers that were given before; they cost a tenant nothing.
    """

    def __init__(
        self,
        plane: DataPlane,
        settings: ServingSettings,
        tenants: Sequence[TenantSettings] = (),
        *,
        spent: Mapping[str, DaySpent] | None = None,
        seeds: Callable[[], int] = lambda: secrets.randbits(63),
        date: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            plane: admits and routes.
            spent: what tenants had spent when a core ran here before.
            seeds: gives one for each request that samples and names none.
            date: what a chat template is told, and by which days are counted.
        """
        self._plane, self._settings = plane, settings.generation
        self._seeds, self._date = seeds, date
        self.cache = AnswerCache(self._settings.limits.cache_bytes)
        self.accounts = TokenAccounts(tenants, asyncio.get_running_loop().time, date, spent=spent or {})
        self._numbers = itertools.count()

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None) -> Ticket:
        """Let a request in before its payload is looked at; see :meth:`DataPlane.admit`."""
        return self._plane.admit(context, model, version, size_bytes)

    async def generate(self, ticket: Ticket, context: RequestContext, request: TextRequest) -> TextAnswer:
        """Begin an answer.

        Raises:
            InvalidInput: the prompt, what is asked of it, or a model that answers with arrays. Others, among them
                QuotaExceeded for the tenant's tokens, come with the first event.
        """
        if ticket.route.lane is not None:
            self._plane.settle_arm(ticket, request.parameters)
        served = ticket.route.served
        if not isinstance(served, ServedText):
            raise InvalidInput(
                f"model {request.model!r} answers with arrays; ask it at /v2/models/{request.model}/infer",
                field="model",
            )
        asked = await served.model.prepared(
            request, self._settings.limits, id=str(next(self._numbers)), seed=self._seeds(), at=self._date()
        )
        context = context.or_within(self._settings.limits.default_timeout_s)
        if ticket.account is not None:
            context = ticket.account.within_rights(context)
        served.last_used_at = context.arrived_at
        account: dict[str, Parameter] = {"served_by": "cloud", "variant": served.variant.digest}
        if ticket.route.lane is not None:
            account["arm"] = ticket.route.lane.arm
        events = self._events(served, asked, context, ticket.note, is_repeatable=prompts.is_repeatable(request))
        return TextAnswer(
            events=_told(events, account) if asked.options is not None else events,
            prompt_ids=asked.prompt_ids,
            token_bytes=served.model.token_bytes,
            account=account,
        )

    def text_models(self) -> Sequence[TextModel]:
        """List the models that can be asked now."""
        return [
            listed(version, served.model.facts.context_tokens)
            for version, served in self._plane.served_versions()
            if isinstance(served, ServedText) and not served.problem
        ]

    async def cut(self) -> None:
        """End every answer in the making with an error, which its client gets to read; no more are begun."""
        await asyncio.gather(*(served.model.close(0.0) for served in self._plane.served_texts()))

    async def _events(
        self,
        served: ServedText,
        asked: GenerationRequest,
        context: RequestContext,
        note: Note | None,
        *,
        is_repeatable: bool,
    ) -> AsyncGenerator[TokenEvent, None]:
        key = cache_key(asked, model=served.variant.digest, tenant=context.tenant) if is_repeatable else None
        if self.cache.max_bytes:
            for event in self.cache.get(key) or ():
                yield event
                if event.finish is not None:
                    return
        # reserved here, not before: an iterator that nobody begins to read runs no clean-up either
        self.accounts.reserve(context.tenant, asked)
        said: list[TokenEvent] = []
        try:
            events = served.model.generate(asked, deadline=context.deadline, priority=context.priority)
            async with contextlib.aclosing(events):
                async for event in events:
                    said.append(event)
                    yield event
        finally:  # also for whoever went away
            answer = len(said) if asked.options is None else asked.options.tokens
            self.accounts.settle(context.tenant, asked.id, len(asked.prompt_ids) + answer if said else 0)
            if note is not None and said:
                note.spent(len(asked.prompt_ids), answer)
        self.cache.put(key, said)


async def _told(events: AsyncGenerator[TokenEvent, None], account: dict[str, Parameter]) -> AsyncGenerator[TokenEvent]:
    """Pass an answer among options on, and tell how sure the model is of it before its last token."""
    async with contextlib.aclosing(events):
        async for event in events:
            if event.options:
                account["confidence"] = choice_score(event.options, name="max_prob")
            yield event
