"""One request, top to bottom: admit, run locally, decide, answer or escalate, account for every row.

Owns the order of these steps. Each decision is a plain function in ``edge_agent.policy``; each resource is another
module's (engine and certificate: ``hosting``; the cloud: ``escalation``; draws: ``audit``; places: ``inflight``).
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_agent.policy import admission, cascade, egress
from edge_agent.policy.cascade import KEPT, CascadeMode, Reason, RowOutcome
from edge_agent.serving import responses
from edge_agent.serving.array_model import ArrayModel
from edge_agent.serving.audit import Auditor, Draw
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.hosting import Hosted, Hosting
from edge_agent.serving.inflight import InFlight, Ticket
from edge_agent.serving.local_queue import LocalAnswer
from edge_agent.serving.responses import EXPLAIN_OUTPUTS, Escalated
from edge_agent.settings import CascadeSettings, LimitsSettings
from penstock.artifact.run_config import config_of
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError, Unavailable
from penstock.policy.access import Action
from penstock.process.machine import usable_memory_bytes
from penstock.runtime import TEXT_ENGINES
from penstock.wire.context import RequestContext
from penstock.wire.inference import (
    InferRequest,
    InferResponse,
    ModelConfig,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    Parameter,
)
from penstock.wire.tensors import Array, check_inputs

_AUDIT_PARTS = 4  # of what bodies may take: nobody waits for an audit
_MEMORY_PARTS = 8  # one for bodies; an agent is a guest on its device


@dataclass(slots=True)  # not frozen: freezing costs a microsecond on each request
class _Work:
    """One request whose rows are let in."""

    hosted: Hosted
    model: ArrayModel
    request: InferRequest
    context: RequestContext
    rows: int
    is_private: bool
    is_explained: bool


class DataPlane:
    """Answers requests. All methods are called from the event loop."""

    def __init__(
        self,
        hosting: Hosting,
        escalator: Escalator,
        cascade_settings: CascadeSettings,
        limits: LimitsSettings,
        *,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        """``random`` gives uniform numbers in [0, 1); the audit's draws come from it."""
        self._spans = escalator.spans
        self.hosting = hosting
        self.escalator = escalator
        self.limits = admission.Limits(
            max_body_bytes=limits.max_body_bytes,
            max_queue_rows=limits.max_queue_rows,
            max_rows_per_request=limits.max_rows_per_request,
            max_inflight_bytes=limits.max_inflight_bytes
            or max(limits.max_body_bytes, usable_memory_bytes() // _MEMORY_PARTS),
        )
        self.in_flight = InFlight(self.limits)
        self.load = self.in_flight.load
        settings = escalator.settings
        self.auditor = Auditor(
            escalator,
            max_rows=settings.max_rows,
            max_queue_rows=settings.max_queue_rows,
            max_queue_bytes=self.limits.max_inflight_bytes // _AUDIT_PARTS,
            timeout_s=settings.timeout_s,
        )
        self._cascade = cascade_settings
        self._default_timeout_s = limits.default_timeout_s
        self._random = random
        self._loop = asyncio.get_running_loop()

    # -- health ------------------------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Say yes: an agent that can be asked is alive, with or without a model."""
        return True

    @property
    def is_ready(self) -> bool:
        """Say whether requests are answered: there is a model, and no drain has begun."""
        return bool(self.hosting.models()) and not self.load.is_draining

    def model_state(self, model: str, version: str = "") -> ModelState:
        """
        Raises:
            NotFound: no such model or version. Unavailable: it is loading.
        """
        return _state(self.hosting.get(model, version))

    def index(self) -> list[ModelState]:
        """List the models that can answer; the reason is why a model's answers are not kept, where they are not."""
        return [_state(hosted) for hosted in self.hosting.hosted()]

    def statistics(self) -> list[ModelStatistics]:
        """Say what became of the rows of each model that can answer."""
        return [
            ModelStatistics(
                model=hosted.plan.model,
                version=hosted.plan.version,
                rows=hosted.counts.requests - hosted.counts.failed,
                outcomes=hosted.counts.columns(),
            )
            for hosted in self.hosting.hosted()
        ]

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """
        Raises:
            NotFound: no such model or version. Unavailable: it is loading.
        """
        return self.hosting.get(model, version).metadata

    def config(self, model: str, version: str = "") -> ModelConfig:
        """Say how a version is run. Raises as :meth:`metadata`."""
        hosted = self.hosting.get(model, version)
        variant = hosted.plan.variant
        return config_of(variant, hosted.metadata, in_parts=variant.spec.engine in TEXT_ENGINES)

    # -- requests ----------------------------------------------------------------------------------------------------

    def authenticate(self, authorization: str, action: Action) -> str:
        """Everybody who can open the socket may ask: the file's mode decides."""
        return ""

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None) -> Ticket:
        """Let a request in before its body is read; see :meth:`InFlight.admit`."""
        return self.in_flight.admit(size_bytes)

    async def infer(self, ticket: Ticket, context: RequestContext, request: InferRequest) -> InferResponse:
        """Answer one admitted, decoded request.

        Raises:
            InvalidInput, NotFound, Unavailable, QueueFull: refused; nothing was executed.
            DeadlineExceeded: not in time. Unavailable: also when ``on_unreachable`` is ``fail`` and the cloud was
            needed. Internal: the engine failed.
        """
        if self._spans is not None:
            return await self._spans.request(request, context, self._answer)
        return await self._answer(request, context)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: InferRequest, context: RequestContext) -> InferResponse:
        work = self._let_in(context, request)
        hosted, load = work.hosted, self.load
        load.rows += work.rows
        hosted.enter()
        try:
            local = await work.model.queue.infer(
                request.inputs, work.rows, work.context.deadline, work.context.priority
            )
            return self._keep(work, local) or await self._escalate(work, local)
        except BaseException as error:  # whatever it was, also a client that went away: these rows got no answer
            hosted.tally.record(failed=work.rows)
            hosted.failures += isinstance(error, Internal)
            raise
        finally:
            load.rows -= work.rows
            hosted.leave()

    def _let_in(self, context: RequestContext, request: InferRequest) -> _Work:
        hosted = self.hosting.get(request.model, request.version)
        model = hosted.arrays
        rows = check_inputs(request.inputs, hosted.metadata.inputs)
        is_private = is_explained = False
        if request.outputs:
            _check_outputs(request.outputs, hosted)
            is_explained = any(name in EXPLAIN_OUTPUTS for name in request.outputs)
        if request.parameters:
            context = context.with_parameters(request.parameters)
            is_private = _flag(request, "local_only")
            is_explained = is_explained or _flag(request, "explain")
        context = context.or_within(self._default_timeout_s)
        refusal = admission.on_rows(self.load, self.limits, rows=rows) or admission.on_deadline(
            context.deadline, self._loop.time()
        )
        if refusal is not None:
            raise refusal
        return _Work(hosted, model, request, context, rows, is_private, is_explained)

    def _keep(self, work: _Work, local: LocalAnswer) -> InferResponse | None:
        """Make the response when every row is kept, as in most requests; None when one is not."""
        if False in local.decision.is_kept:
            return None
        drawn = self._draw(work, local)
        parameters = {**work.hosted.kept_account, "confidence": cascade.least(local.scores)}
        response = _respond(work, local.outputs, parameters, local.scores, (KEPT,) * work.rows)
        work.hosted.tally.record(kept=work.rows)
        if drawn:
            self._submit(work, local, drawn)
        return response

    async def _escalate(self, work: _Work, local: LocalAnswer) -> InferResponse:
        hosted, decision = work.hosted, local.decision
        drawn = self._draw(work, local)
        uncertain = [row for row in range(work.rows) if not (work.model.can_split and decision.is_kept[row])]
        asked = await self._ask(work, local, uncertain)
        outcomes = responses.outcomes(local, asked, hosted.plan.variant.spec.score_output)
        by_device = [row for row in uncertain if not outcomes[row].is_by_cloud]
        if by_device:
            self._check_fallback(work, local, by_device, asked)
        outputs = responses.merged(local.outputs, asked, work.rows)
        account = {**hosted.account, **responses.account(local.scores, outcomes)}
        response = _respond(work, outputs, account, local.scores, outcomes)
        hosted.tally.record(kept=work.rows - len(uncertain), **cascade.counted([outcomes[row] for row in uncertain]))
        if drawn:
            self._account_draws(work, local, drawn, outcomes, asked)
        return response

    def _check_fallback(
        self, work: _Work, local: LocalAnswer, by_device: Sequence[int], asked: Sequence[Escalated]
    ) -> None:
        """May these uncertain rows be answered by the device after all?

        Raises:
            InvalidInput: not allowed, and the rows are not finite, which the cloud knows no answer to either.
            Unavailable: not allowed, or the device has no answer either.
        """
        call = next(call for call in asked if by_device[0] in call.wanted)
        if self._cascade.on_unreachable == "fail":
            if call.is_final and all(local.decision.is_broken(row) for row in by_device):
                raise InvalidInput(
                    f"inputs: row {by_device[0]} holds NaN or infinity, and the cloud has no answer to it; send finite "
                    "numbers (is a sensor broken?)",
                    field="inputs",
                )
            problem = "and cascade.on_unreachable is 'fail'"
        elif work.model.can_split and any(
            not array.ndim or len(array) != work.rows for array in local.outputs.values()
        ):
            problem = "and the device's own output is malformed"
        else:
            return
        raise Unavailable(
            f"{len(by_device)} of {work.rows} rows need the cloud, which did not answer them "
            f"({call.why_not(by_device[0])}), {problem}",
            retry_after_s=self.escalator.settings.breaker_open_s,
        )

    async def _ask(self, work: _Work, local: LocalAnswer, uncertain: Sequence[int]) -> Sequence[Escalated]:
        """Send up what may go; never raises for a cloud that does not answer.

        Rows that are not finite go up apart, after the others: a cloud may fail on them, and a broken sensor must not
        use up the budget.
        """
        broken = [row for row in uncertain if local.decision.is_broken(row)]
        if len(broken) in (0, len(uncertain)) or not work.model.can_split:
            return [await self._ask_about(work, local, uncertain, is_finite=not broken)]
        sound = [row for row in uncertain if not local.decision.is_broken(row)]
        return await asyncio.gather(
            self._ask_about(work, local, sound, is_finite=True), self._ask_about(work, local, broken, is_finite=False)
        )

    async def _ask_about(
        self, work: _Work, local: LocalAnswer, uncertain: Sequence[int], *, is_finite: bool
    ) -> Escalated:
        queue = self.escalator.queue_of(work.hosted)
        remaining_s = work.context.deadline - self._loop.time()
        permit = egress.permit(
            rows=len(uncertain),
            is_private=work.is_private,
            is_reachable=queue.is_reachable,
            p95_s=queue.p95_s(),
            remaining_s=remaining_s,
            free_rows=int(min(self.escalator.free_tokens(), queue.free_rows)),
        )
        rows = egress.least_confident(local.scores, uncertain, permit.rows)
        if len(rows) < len(uncertain) and not work.model.can_split:
            rows = []  # a fixed batch goes up whole or not at all
        if not rows:
            return Escalated(wanted=uncertain, refused=permit.reason)
        self.escalator.take_tokens(len(rows))
        inputs = work.request.inputs
        if len(rows) < work.rows:
            inputs = {name: array[rows] for name, array in inputs.items()}
        timeout_s = egress.call_timeout_s(remaining_s, self.escalator.settings.timeout_s)
        context = work.context.until(self._loop.time() + timeout_s)
        sent = Escalated(wanted=uncertain, rows=rows, refused=permit.reason)
        try:
            answer = await queue.ask(inputs, len(rows), context, is_finite=is_finite)
        except PenstockError as error:
            return replace(sent, failure=self._failure(error, remaining_s), is_final=isinstance(error, InvalidInput))
        work.hosted.note_cloud(answer.variant)
        scored = answer.outputs[work.hosted.plan.variant.spec.score_output]
        usable = cascade.usable_rows(scored).tolist()
        failure = Reason.NOT_FINITE if scored.size else Reason.CLOUD_UNREACHABLE
        return replace(sent, answer=answer, usable=usable, failure=failure, is_final=True)

    def _failure(self, error: PenstockError, remaining_s: float) -> Reason:
        was_hurried = remaining_s < self.escalator.settings.timeout_s
        return Reason.DEADLINE if isinstance(error, DeadlineExceeded) and was_hurried else Reason.CLOUD_UNREACHABLE

    def _draw(self, work: _Work, local: LocalAnswer) -> Sequence[int]:
        share = self._cascade.audit_share
        hosted = work.hosted
        if not share or work.is_private or hosted.mode is not CascadeMode.CASCADE:
            return ()
        # a fixed batch goes up whole, so it is drawn whole: by one number for all of its rows
        numbers = [self._random() for _ in range(work.rows)] if work.model.can_split else [self._random()] * work.rows
        drawn = cascade.evidence(cascade.drawn(numbers, share), local.decision, can_split=work.model.can_split)
        return drawn if drawn and self.auditor.can_draw(hosted) else ()

    def _account_draws(
        self,
        work: _Work,
        local: LocalAnswer,
        drawn: Sequence[int],
        outcomes: Sequence[RowOutcome],
        asked: Sequence[Escalated],
    ) -> None:
        """Draws that the cloud answered anyway are harmless and known; the others go up now."""
        known = [row for row in drawn if outcomes[row].is_by_cloud]
        variants = [each.answer.variant for each in asked if each.answer is not None]
        if known and all(work.hosted.is_certified_cloud(variant) for variant in variants):
            work.hosted.note_audit(audited=len(known), harm=0)
        unknown = [row for row in drawn if not outcomes[row].is_by_cloud]
        if unknown:
            self._submit(work, local, unknown)

    def _submit(self, work: _Work, local: LocalAnswer, rows: Sequence[int]) -> None:
        index = list(rows)
        kept = tuple(local.decision.is_kept[row] for row in index)
        rows_kept = [row for row in index if local.decision.is_kept[row]]
        # an answer that was not kept may be malformed; indexing by a list copies: the batch must not be kept alive
        answers = work.model.answers(local.outputs, rows_kept) if rows_kept else np.zeros(0)
        given = work.request.inputs
        # a fixed batch is drawn whole
        inputs = {name: array[index] if work.model.can_split else array.copy() for name, array in given.items()}
        self.auditor.submit(Draw(work.hosted, inputs, answers, kept))


def _state(hosted: Hosted) -> ModelState:
    return ModelState(model=hosted.plan.model, version=hosted.plan.version, state="READY", reason=hosted.mode_why)


def _check_outputs(wanted: Sequence[str], hosted: Hosted) -> None:
    known = [spec.name for spec in hosted.metadata.outputs]
    for name in wanted:
        if name not in known and name not in EXPLAIN_OUTPUTS:
            raise InvalidInput(
                f"outputs: no output named {name!r}; the model gives {', '.join(known)}", field=f"outputs.{name}"
            )


def _flag(request: InferRequest, name: str) -> bool:
    value = request.parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameters.{name}: {value!r} is not true or false", field=f"parameters.{name}")
    return value


def _respond(
    work: _Work,
    outputs: Mapping[str, Array],
    parameters: dict[str, Parameter],
    scores: Sequence[float],
    outcomes: Sequence[RowOutcome],
) -> InferResponse:
    request, plan = work.request, work.hosted.plan
    if work.is_explained:
        outputs = {**outputs, **responses.explanation(scores, outcomes)}
    if request.outputs:
        wanted = dict.fromkeys((*request.outputs, *(EXPLAIN_OUTPUTS if work.is_explained else ())))
        outputs = {name: outputs[name] for name in wanted}
    return InferResponse(model=plan.model, version=plan.version, id=request.id, outputs=outputs, parameters=parameters)
