"""The loop of one engine: who waits gets a slot, the engine makes a step, tokens become text, and events go out.

Level-triggered and synchronous: :meth:`EngineLoop.turn` may be called at any time, and does what there is to do; who
calls it takes commands in between, so that a cancellation costs at most the step that runs. Who gets a slot is decided
by ``penstock.policy.slots``. Knows no process and no socket: ``penstock.hosting.generation.worker`` moves what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError
from penstock.generation.answer_text import AnswerText
from penstock.generation.stop_strings import check_stops
from penstock.generation.values import GenerationRequest, SampledToken, TokenEvent
from penstock.hosting.generation.generator import Load, Totals
from penstock.policy.slots import Runs, SlotLimits, Waits, plan_slots
from penstock.runtime.generation import EngineFacts, GenerationEngine
from penstock.runtime.generation.requests import check

_STEPS_BESIDE = 64
"""Steps without a token that an engine may make beside those that compute a token of a prompt each."""


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that were measured in one turn.

    Attributes:
        queued_s: from arrival to a slot.
        first_token_s: from arrival to the first token.
        between_tokens_s: from one token of a generation to its next.
    """

    queued_s: tuple[float, ...] = ()
    first_token_s: tuple[float, ...] = ()
    between_tokens_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What came of one turn.

    Attributes:
        events: of generations, by id, in order.
        failures: generations that ended without their answer.
        has_work: there is something to do in another turn; otherwise not before the next request.
    """

    events: tuple[tuple[str, TokenEvent], ...]
    failures: tuple[tuple[str, PenstockError], ...]
    times: Times
    has_work: bool


@dataclass(slots=True, kw_only=True)
class _Generation:
    """One generation. What plans read of it is made once, not for each step: a line of many costs every token."""

    request: GenerationRequest
    text: AnswerText
    waits: Waits
    runs: Runs
    tokens: int = 0
    told_at: float = 0.0

    def begins(self) -> None:
        """Note that its first token is there."""
        self.runs = replace(self.runs, has_begun=True)


class EngineLoop:
    """One engine and the generations that wait for it or run in it. Everything here happens in one thread."""

    def __init__(
        self,
        engine: GenerationEngine,
        text: Callable[[GenerationRequest], AnswerText],
        limits: SlotLimits,
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            text: begins the text of an answer. What it raises is wrong with the request.
            now: the clock of deadlines.
        """
        self._engine, self._text, self._limits, self._now = engine, text, limits, now
        self._waiting: dict[str, _Generation] = {}
        self._running: dict[str, _Generation] = {}
        self._steps_without_token = 0
        self._counts = dict.fromkeys(Totals.__struct_fields__, 0)

    def __repr__(self) -> str:
        return f"EngineLoop({len(self._waiting)} wait, {len(self._running)} run, {self.totals()})"

    @property
    def facts(self) -> EngineFacts:
        """Return what the engine can take."""
        return self._engine.facts

    def load(self) -> Load:
        """Return what there is to do."""
        return Load(
            waiting=len(self._waiting),
            waiting_kv_bytes=sum(each.waits.kv_bytes for each in self._waiting.values()),
            running=len(self._running),
            running_kv_bytes=sum(each.waits.kv_bytes for each in self._running.values()),
            max_kv_bytes=self._limits.max_kv_bytes,
        )

    def totals(self) -> Totals:
        """Return what was done since the beginning."""
        return Totals(**self._counts)

    def submit(self, request: GenerationRequest, *, deadline: float = math.inf, priority: int = 0) -> None:
        """Let a generation wait for a slot.

        Raises:
            InvalidInput: it cannot run in this engine, or its id is taken. QueueFull: no room to wait.
            DeadlineExceeded: too late already.
        """
        now, facts = self._now(), self._engine.facts
        check(request, facts, ())  # of slots there are none to look at yet
        check_stops(request.stop)
        if request.id in self._waiting or request.id in self._running:
            raise InvalidInput(f"id: a generation {request.id!r} runs already", field="id")
        if deadline <= now:
            raise _too_late(0)
        kv_bytes = (len(request.prompt_ids) + request.max_new_tokens) * facts.kv_bytes_per_token
        load = self.load()
        refused = self._limits.refusal(
            kv_bytes, running=load.running, waiting=load.waiting, waiting_kv_bytes=load.waiting_kv_bytes
        )
        if refused is not None:
            raise refused
        prompt_tokens = len(request.prompt_ids)
        self._waiting[request.id] = _Generation(
            request=request,
            text=self._text(request),
            waits=Waits(
                id=request.id,
                prompt_tokens=prompt_tokens,
                kv_bytes=kv_bytes,
                arrived_at=now,
                deadline=deadline,
                priority=priority,
            ),
            runs=Runs(id=request.id, prompt_tokens=prompt_tokens, kv_bytes=kv_bytes, deadline=deadline),
        )

    def cancel(self, id: str) -> bool:
        """Give a generation up, whether it waits or runs; say whether it was there. Nothing more is told of it."""
        if self._waiting.pop(id, None) is None:
            if self._running.pop(id, None) is None:
                return False
            self._engine.cancel(id)
        self._add(cut_off=1)
        return True

    def turn(self) -> Turn:
        """Do what is due, make one step if something runs, and return what came of it.

        Raises:
            Internal: the engine failed; everything that ran in it is lost, and so is the engine.
        """
        now = self._now()
        plan = plan_slots(
            [each.waits for each in self._waiting.values()],
            [each.runs for each in self._running.values()],
            self._limits,
            now,
        )
        failures = [*self._cut(plan.cut, plan.expire)]
        queued_s = self._admit(plan.admit, now, failures)
        events, first_s, between_s = self._step(failures)
        return Turn(
            events=tuple(events),
            failures=tuple(failures),
            times=Times(queued_s=tuple(queued_s), first_token_s=tuple(first_s), between_tokens_s=tuple(between_s)),
            has_work=bool(self._running or self._waiting),
        )

    def close(self) -> None:
        """Release the engine; idempotent."""
        self._engine.close()

    def _cut(self, running: tuple[str, ...], waiting: tuple[str, ...]) -> list[tuple[str, PenstockError]]:
        """Take out what is too late. What waited was never run."""
        failures: list[tuple[str, PenstockError]] = []
        for id in waiting:
            del self._waiting[id]
            failures.append((id, _too_late(0)))
        for id in running:
            self._engine.cancel(id)
            failures.append((id, _too_late(self._running.pop(id).tokens)))
        if failures:
            self._add(cut_off=len(failures))
        return failures

    def _admit(self, ids: tuple[str, ...], now: float, failures: list[tuple[str, PenstockError]]) -> list[float]:
        queued_s = []
        for id in ids:
            generation = self._waiting.pop(id)
            try:
                self._engine.admit(generation.request)
            except Exception as error:  # what the engine alone knows, as a grammar that it cannot compile
                self._engine.cancel(id)
                failures.append((id, _of(error)))
                continue
            self._running[id] = generation
            queued_s.append(now - generation.waits.arrived_at)
        return queued_s

    def _step(
        self, failures: list[tuple[str, PenstockError]]
    ) -> tuple[list[tuple[str, TokenEvent]], list[float], list[float]]:
        events: list[tuple[str, TokenEvent]] = []
        first_s: list[float] = []
        between_s: list[float] = []
        if not self._running:
            return events, first_s, between_s
        sampled = self._engine.step()
        self._add(steps=1)
        self._check_progress(bool(sampled))
        now = self._now()
        for token in sampled:
            generation = self._running.get(token.request)
            if generation is None:  # the step gave several tokens, and the answer ended before this one
                continue
            if generation.tokens:
                between_s.append(now - generation.told_at)
            else:
                first_s.append(now - generation.waits.arrived_at)
                generation.begins()
                self._add(prompt_tokens=len(generation.request.prompt_ids), cached_tokens=token.cached_tokens)
            generation.tokens += 1
            generation.told_at = now
            self._add(completion_tokens=1)
            try:
                event = generation.text.add(token)
            except Exception as error:  # one answer's text must not end the others
                self._drop(token)
                failures.append((token.request, _of(error)))
                continue
            if event is None:
                continue
            wish = generation.request.give_up
            if event.finish is None and wish and wish.applies(token.logprob, place=generation.tokens - 1):
                event = msgspec.structs.replace(event, finish="cancelled")
            if event.finish is not None:
                self._drop(token)
                self._add(**{"cut_off" if event.finish == "cancelled" else "ended": 1})
            events.append((token.request, event))
        return events, first_s, between_s

    def _drop(self, token: SampledToken) -> None:
        del self._running[token.request]
        if token.finish is None:  # the engine does not know that it is over
            self._engine.cancel(token.request)

    def _check_progress(self, has_tokens: bool) -> None:
        """Find an engine that steps without end: each step computes at least one token of some prompt, or samples."""
        self._steps_without_token = 0 if has_tokens else self._steps_without_token + 1
        if self._steps_without_token <= _STEPS_BESIDE:
            return
        tokens = sum(_tokens_before(each.request) for each in self._running.values())
        if self._steps_without_token > tokens + _STEPS_BESIDE:
            raise Internal(
                f"the engine made {self._steps_without_token} steps without a token for {len(self._running)} "
                f"generations whose prompts and options have {tokens} tokens"
            )

    def _add(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counts[name] += count


def _tokens_before(request: GenerationRequest) -> int:
    """Count the tokens that are computed before a request's first token can be told."""
    return len(request.prompt_ids) + (request.options.tokens if request.options is not None else 0)


def _too_late(tokens: int) -> DeadlineExceeded:
    if tokens:
        return DeadlineExceeded(f"the deadline passed after {tokens} tokens of the answer; it was cut off")
    return DeadlineExceeded("the deadline passed before the first token")


def _of(error: Exception) -> PenstockError:
    if isinstance(error, PenstockError):
        return error
    return Internal(f"the answer could not be made: {type(error).__name__}: {error}")
