"""One text, top to bottom: tokenize, draft, decide, keep or escalate, account.

Owns the order of these steps. What may be kept is ``edge_agent.policy.text_cascade``; the device's model is
``edge_agent.serving.hosting``'s, the cloud ``edge_agent.serving.cloud_texts``'. A draft that has to be decided about is
held back until it is: what a client has read cannot be taken back. By a score of the prompt that is at its first token,
by others when it is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random as random_module
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from edge_agent.policy import text_cascade
from edge_agent.policy.cascade import CascadeMode, Reason
from edge_agent.policy.text_cascade import Promise, Start
from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.hosting import Hosted
from edge_agent.serving.inflight import Ticket
from edge_agent.serving.text_audit import TextAuditor, TextDraw
from edge_agent.settings import CascadeSettings
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError, Unavailable
from penstock.generation.plane import Chat, TextAnswer, TextModel, TextRequest
from penstock.generation.values import GenerationRequest, GiveUp, TokenEvent
from penstock.hosting.generation.settings import TextLimits
from penstock.wire.context import RequestContext
from penstock.wire.inference import Parameter

Events = AsyncGenerator[TokenEvent, None]


@dataclass(slots=True)
class _Draft:
    """What the device said.

    Attributes:
        is_whole: it ended; otherwise it was given up when it could only be escalated, or goes on.
        rest: what goes on of a draft that is kept before it is whole; None of any other.
    """

    events: list[TokenEvent] = field(default_factory=list)
    is_whole: bool = False
    rest: Events | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    async def read(self) -> Events:
        """Yield every event, those to come when they come."""
        async with contextlib.aclosing(self.rest or _nothing()) as rest:
            for event in self.events:
                yield event
            async for event in rest:
                yield event


@dataclass(slots=True, kw_only=True)
class _Work:
    """One request that was let in; ``account`` grows until its last event, ``prompt`` is "" where it was no text."""

    hosted: Hosted
    asked: GenerationRequest
    context: RequestContext
    start: Start
    promise: Promise | None
    account: dict[str, Parameter]
    is_drawn: bool
    prompt: str = ""
    is_recorded: bool = False

    def draw(self, kept: str | None) -> TextDraw:
        """Return what is audited of it."""
        reads = self.hosted.texts.token_bytes
        prompt = self.prompt or b"".join(map(reads, self.asked.prompt_ids)).decode(errors="replace")
        return TextDraw(self.hosted, self.asked, kept, prompt)

    def record(self, outcome: str) -> None:
        """Count what became of it, once."""
        self.is_recorded = True
        self.hosted.tally.record(**{outcome: 1})


class TextPlane:
    """Answers texts. All methods are called from the event loop.

    Attributes:
        saved_drafts: answers of the cloud's for which nothing was drafted, since the prompt alone decided.
        lost_tokens: that were drafted for answers which were escalated then.
    """

    def __init__(
        self,
        plane: DataPlane,
        cloud: CloudTexts,
        settings: CascadeSettings,
        limits: TextLimits,
        *,
        max_audits: int,
        random: Callable[[], float] = random_module.random,
        date: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            plane: admits requests.
            max_audits: answers that may wait for their audit.
            random: gives uniform numbers in [0, 1); the audit's draws come from it.
            date: what a chat template is told.
        """
        self._plane, self._cascade, self._limits = plane, settings, limits
        self.cloud = cloud
        plane.hosting.on_retired = cloud.forget_retired
        self._random, self._date = random, date
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self.saved_drafts = self.lost_tokens = 0
        self.auditor = TextAuditor(cloud, max_queue=max_audits, timeout_s=limits.default_timeout_s, random=random)

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None) -> Ticket:
        """Let a request in before its body is read; see :meth:`DataPlane.admit`."""
        return self._plane.admit(context, model, version, size_bytes)

    def text_models(self) -> Sequence[TextModel]:
        """List the models that can be asked now."""
        return [
            TextModel(
                name=hosted.plan.model,
                version=hosted.plan.version,
                context_tokens=hosted.texts.facts.context_tokens,
            )
            for hosted in self._plane.hosting.hosted()
            if hosted.is_text and hosted.texts.generator.health().is_well
        ]

    async def generate(self, ticket: Ticket, context: RequestContext, request: TextRequest) -> TextAnswer:
        """Begin an answer.

        Raises:
            InvalidInput: the prompt, or what is asked of it; also for a model that answers with arrays.
            NotFound, Unavailable: no such model here, or it is loading.
        """
        hosted = self._plane.hosting.get(request.model, request.version)
        model = hosted.texts
        ticket.hold(hosted)  # of several answers, some begin when others have ended
        is_private = _flag(request, "local_only")
        asked = await model.prepared(
            request, self._limits, id=str(next(self._numbers)), seed=secrets.randbits(63), at=self._date()
        )
        promise = _promise(hosted)
        start = text_cascade.start(
            asked,
            promise,
            mode=hosted.mode,
            has_tools=isinstance(request.prompt, Chat) and bool(request.prompt.tools),
            is_private=is_private,
            outside=self._cascade.outside,
        )
        is_watched = promise is not None and not start.outside and not is_private
        is_drawn = is_watched and hosted.mode is CascadeMode.CASCADE and self._random() < self._cascade.audit_share
        hosted.grader.unavailable += bool(is_drawn and hosted.grader.problem)
        work = _Work(
            hosted=hosted,
            asked=asked,
            context=context.or_within(self._limits.default_timeout_s),
            start=start,
            promise=promise,
            account=dict(hosted.account),
            is_drawn=is_drawn and self.auditor.can_draw(hosted),
            prompt=request.prompt if isinstance(request.prompt, str) else "",
        )
        return TextAnswer(
            events=self._counted(work),
            prompt_ids=asked.prompt_ids,
            token_bytes=model.token_bytes,
            account=work.account,
        )

    async def cut(self) -> None:
        """End every answer in the making with an error, which its client gets to read; no more are begun."""
        models = [hosted.texts for hosted in self._plane.hosting.hosted() if hosted.is_text]
        await asyncio.gather(self.cloud.close(), *(model.close(0.0) for model in models))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _counted(self, work: _Work) -> Events:
        """Account for one request in the model that it is for."""
        hosted = work.hosted
        deaths = _deaths(hosted)
        hosted.enter()
        try:
            async with contextlib.aclosing(await self._source(work)) as events:
                async for event in events:
                    yield event
        except BaseException as error:
            if not work.is_recorded:  # also a client that went away: this request got no answer
                work.record("failed")
            has_died = _deaths(hosted) > deaths
            hosted.failures += isinstance(error, Internal) or (has_died and isinstance(error, Unavailable))
            raise
        finally:
            hosted.leave()

    async def _source(self, work: _Work) -> Events:
        """Decide where an answer comes from."""
        start, promise = work.start, work.promise
        if not start.drafts:
            return self._escalated(work, None)
        if start.outside or promise is None:
            return self._by_device(work, start.reason)  # nothing is decided about it, so nothing is held back
        deaths = _deaths(work.hosted)
        try:
            draft = await self._drafted(work, promise)
        except Unavailable:  # its process ended, or is being started again; the cloud's answer is as good as ever
            if start.reason is Reason.PRIVACY:
                raise
            work.hosted.failures += _deaths(work.hosted) > deaths
            return self._escalated(work, None)
        if start.reason is Reason.PRIVACY or draft.rest is not None or self._is_kept(work, draft, promise):
            return self._kept(work, draft)
        self.lost_tokens += len(draft.events)
        return self._escalated(work, draft)

    async def _drafted(self, work: _Work, promise: Promise) -> _Draft:
        """Let the device answer; stop as soon as it is decided what becomes of the answer."""
        draft, limit = _Draft(), work.asked.max_new_tokens
        is_private = work.start.reason is Reason.PRIVACY
        # drawn answers are held back: one whose reader leaves would not be audited, while escalated ones always count
        is_early = not is_private and not work.is_drawn
        wish = None if is_private else text_cascade.give_up(promise)
        async with contextlib.AsyncExitStack() as stack:
            events = await stack.enter_async_context(contextlib.aclosing(self._local(work, wish)))
            async for event in events:
                place = len(draft.events)
                draft.events.append(event)
                draft.is_whole = event.finish not in (None, "cancelled")
                if wish is not None and wish.applies(event.logprob, place=place):
                    break  # the engine has given it up, unless it is a server that knows no such wish
                if is_early and place == 0 and text_cascade.is_kept_before(event.logprob, promise, limit=limit):
                    stack.pop_all()  # whoever reads the rest closes it
                    draft.rest = events
                    break
        work.account["confidence"] = _number(text_cascade.confidence(draft.events, promise))
        return draft

    def _is_kept(self, work: _Work, draft: _Draft, promise: Promise) -> bool:
        last = draft.events[-1]
        return (
            draft.is_whole
            and last.finish is not None
            and text_cascade.is_kept(
                text_cascade.confidence(draft.events, promise),
                promise,
                finish=last.finish,
                tokens=len(draft.events),
                limit=work.asked.max_new_tokens,
            )
        )

    async def _kept(self, work: _Work, draft: _Draft) -> Events:
        is_private = work.start.reason is Reason.PRIVACY
        reason = Reason.PRIVACY if is_private else Reason.CONFIDENT
        work.account |= {"served_by": "edge", "reason": reason.value}
        if work.is_drawn:
            self.auditor.submit(work.draw(draft.text))
        async with contextlib.aclosing(draft.read()) as events:
            async for event in events:
                if not work.is_recorded and (draft.is_whole or event.finish is not None):  # what goes on may still fail
                    work.record("unreachable" if is_private else "kept")
                yield event

    async def _escalated(self, work: _Work, draft: _Draft | None) -> Events:
        """Ask the cloud; where it does not begin an answer, the device's goes out with a flag, or nothing does."""
        context = work.context
        try:
            events = await self.cloud.begin(
                work.hosted, work.asked, deadline=context.deadline, priority=context.priority
            )
        except InvalidInput:
            raise
        except PenstockError as error:
            reason = Reason.DEADLINE if work.context.deadline <= self._loop.time() else Reason.CLOUD_UNREACHABLE
            if self._cascade.on_unreachable == "fail" or reason is Reason.DEADLINE:
                raise self._unanswered(error, reason) from error
            if work.is_drawn:  # lost alike, whether an answer was kept or not
                self.auditor.submit(work.draw(None))
            source = self._by_device(work, reason, draft)
        else:
            was_given_up = draft is not None and not draft.is_whole
            reason = text_cascade.reason_of(work.start, work.promise, was_given_up=was_given_up)
            self.saved_drafts += reason is Reason.ESCALATED_BY_PROMPT
            if work.is_drawn:
                work.hosted.note_audit(audited=1, harm=0)
            work.account |= {"served_by": "cloud", "reason": reason.value}
            work.record("escalated")
            source = events
        async with contextlib.aclosing(source) as answer:
            async for event in answer:
                yield event

    def _unanswered(self, error: PenstockError, reason: Reason) -> PenstockError:
        if reason is Reason.DEADLINE:
            return DeadlineExceeded(f"the cloud was needed, and gave no answer in time: {error.message}")
        return Unavailable(
            f"the cloud was needed, and cascade.on_unreachable is 'fail': {error.message}", retry_after_s=1.0
        )

    async def _by_device(self, work: _Work, reason: Reason, draft: _Draft | None = None) -> Events:
        """Give the device's answer although nothing promises that it is good enough."""
        work.account |= {"served_by": "edge", "reason": reason.value}
        work.record("unreachable")
        if draft is not None and draft.is_whole:
            for event in draft.events:
                yield event
            return
        said: list[TokenEvent] = []
        async with contextlib.aclosing(self._local(work)) as events:
            async for event in events:
                said.append(event)
                if event.finish is not None:
                    work.account["confidence"] = _number(text_cascade.confidence(said, work.promise))
                yield event

    def _local(self, work: _Work, wish: GiveUp | None = None) -> Events:
        asked = work.asked if wish is None else msgspec.structs.replace(work.asked, give_up=wish)
        return work.hosted.texts.generate(asked, deadline=work.context.deadline, priority=work.context.priority)


async def _nothing() -> Events:
    none: tuple[TokenEvent, ...] = ()
    for event in none:
        yield event


def _deaths(hosted: Hosted) -> int:
    counts = hosted.texts.generator.counts()
    return counts.crashes + counts.hangs


def _promise(hosted: Hosted) -> Promise | None:
    certificate, answer = hosted.certificate, hosted.texts.spec.answer
    if certificate is None or not answer or not text_cascade.is_scored_so(certificate.score, answer):
        return None
    return Promise(
        score=certificate.score,
        threshold=certificate.threshold,
        answer=answer,
        temperature=certificate.temperature,
    )


def _flag(request: TextRequest, name: str) -> bool:
    value = request.parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"penstock.{name}: {value!r} is not true or false", field=f"penstock.{name}")
    return value


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value
