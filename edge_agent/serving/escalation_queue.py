"""The way up for the uncertain rows of one model version: rows of concurrent requests joined into calls.

Owns the calls to the cloud, the circuit breaker and the round-trip estimate of one model version; its queue is
``penstock.hosting.queue``. Whether a row should go up is ``policy.cascade``, whether it may is ``policy.egress``; how
bytes travel is the ``Cloud`` it is given. An unreachable cloud costs a request nothing: the way up is shut, and looked
at in the background.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from edge_agent.policy.egress import RoundTrips
from edge_agent.serving.hosting import Hosted
from edge_agent.settings import EscalationSettings
from penstock.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.hosting.queue import BatchQueue, Behaviour, is_invalid
from penstock.hosting.rows import join, split
from penstock.policy.batching import BatchLimits, Room
from penstock.policy.retry import CircuitBreaker
from penstock.process import telemetry
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse, Parameter
from penstock.wire.tensors import Array, TensorSpec, check_tensor

CALLS_IN_FLIGHT = 4
"""Per queue. The first rows go at once; while this many calls are under way, rows gather for the next one."""

AUDIT_PRIORITY = 9
"""Sent with audit calls: below every request that somebody waits for."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAnswer:
    """What the cloud gave for rows. ``variant`` is the digest of the variant that gave it; "" if it does not say."""

    outputs: Mapping[str, Array]
    variant: str


class Cloud(Protocol):
    """A server of the Open Inference Protocol, as far as the way up needs it."""

    async def infer(self, request: InferRequest, context: RequestContext) -> InferResponse:
        """Ask the cloud once, to be answered before the context's deadline.

        Raises:
            PenstockError: no answer, or one that is not a response.
        """
        ...

    async def is_model_ready(self, model: str, version: str) -> bool:
        """Can it serve this model now? False also when it cannot be asked."""
        ...


@dataclass(frozen=True, slots=True)
class _Question:
    """Rows of one request that want an answer, and what travels beside them."""

    inputs: Mapping[str, Array]
    context: RequestContext


class EscalationQueue:
    """The way up for one model version. All methods are called from the event loop."""

    def __init__(self, cloud: Cloud, hosted: Hosted, settings: EscalationSettings) -> None:
        self._cloud = cloud
        self._hosted = hosted
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._model = hosted.plan.model
        self._version = hosted.plan.artifact_digest if settings.model_version == "digest" else ""
        self._outputs = hosted.metadata.outputs
        limits = BatchLimits(
            max_rows=settings.max_rows if hosted.arrays.can_split else 1,  # a fixed batch is sent as it is
            max_delay_s=settings.max_delay_s,
            max_queue_rows=settings.max_queue_rows,
        )
        self._queue: BatchQueue[_Question, CloudAnswer] = BatchQueue(
            self._run,
            limits,
            Behaviour(max_in_flight=CALLS_IN_FLIGHT, stops_unwanted=True, may_be_one=is_invalid),
            room=Room(settings.max_queue_rows, "escalation.max_queue_rows"),
        )
        self._breaker = CircuitBreaker(
            failure_limit=settings.breaker_failures,
            open_s=settings.breaker_open_s,
            max_open_s=max(settings.breaker_open_s, settings.breaker_max_open_s),
        )
        self._round_trips = RoundTrips()
        self._p95_s = (0.0, -math.inf)  # value, when computed
        self._probe: asyncio.Task[None] | None = None
        self._blank: Mapping[str, Array] = {}  # what a probe asks, of the shape of a call that failed

    def __repr__(self) -> str:
        return f"EscalationQueue({self._model}, {self._breaker.phase}, {self._queue!r})"

    @property
    def is_reachable(self) -> bool:
        """Is the circuit closed? Never true while a background probe has yet to find the cloud back."""
        return self._breaker.phase == "closed"

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is queued or under way, and there is nothing to look for in the background."""
        return self._queue.is_idle and self._probe is None

    @property
    def free_rows(self) -> int:
        """Rows that the queue has room for."""
        return self._queue.room.max_rows - self._queue.room.rows

    def p95_s(self) -> float:
        """Estimated round trip; see ``RoundTrips.p95_s``."""
        now = self._loop.time()
        value, at = self._p95_s
        if now - at > 0.25:  # often enough for a policy that looks back over half a minute
            value = self._round_trips.p95_s(now)
            self._p95_s = (value, now)
        return value

    async def ask(
        self, inputs: Mapping[str, Array], rows: int, context: RequestContext, *, is_finite: bool = True
    ) -> CloudAnswer:
        """Send ``rows`` rows up, together with those of others, and wait for the answer until the context's deadline.

        Args:
            is_finite: no input holds NaN or infinity. A cloud may fail on one that does: such rows join no others.

        Raises:
            DeadlineExceeded: no answer in time. QueueFull: too many rows wait.
            PenstockError: whatever the cloud answered instead; Internal when its answer makes no sense.
        """
        return await self._queue.ask(
            _Question(inputs, context),
            rows=rows,
            deadline=context.deadline,
            priority=context.priority,
            shape_key=(is_finite, *_shape_key(inputs)),
        )

    async def ask_alone(self, inputs: Mapping[str, Array], *, timeout_s: float) -> CloudAnswer:
        """Make a call of its own at low priority, past the queue: for audits, of which there is one at a time.

        Raises:
            PenstockError: no usable answer.
        """
        now = self._loop.time()
        return await self._call(
            inputs, RequestContext(arrived_at=now, deadline=now + timeout_s, priority=AUDIT_PRIORITY)
        )

    async def close(self) -> None:
        """Refuse what waits and cancel what is under way."""
        await self._queue.close(Unavailable("the agent is stopping"))
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)

    async def _run(
        self, asked: Sequence[_Question], rows: Sequence[int], deadline: float | None
    ) -> Sequence[CloudAnswer | PenstockError]:
        assert deadline is not None  # every question has one
        # several requests in one call have no common id, so it goes under the most urgent one's; and it may take as
        # long as the most patient one waits: who waits less has gone by then
        context = msgspec.structs.replace(asked[0].context, deadline=deadline)
        answer = await self._call(join([question.inputs for question in asked]), context)
        return [CloudAnswer(outputs=outputs, variant=answer.variant) for outputs in split(answer.outputs, rows)]

    async def _call(self, inputs: Mapping[str, Array], context: RequestContext) -> CloudAnswer:
        timeout_s = context.deadline - self._loop.time()
        if timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed before the cloud was called")
        started_at = time.perf_counter()
        try:
            response = await self._infer(inputs, context, timeout_s)
        except PenstockError as error:
            if self._probe is None:
                self._blank = _blank(inputs, can_split=self._hosted.arrays.can_split)
            # a server that failed on rows that are not finite is there: a broken sensor is not a broken network
            if not (isinstance(error, Internal) and not _is_finite(inputs)):
                self._record(error, time.perf_counter() - started_at, timeout_s)
            raise
        self._record(None, time.perf_counter() - started_at, timeout_s)
        return CloudAnswer(outputs=response.outputs, variant=str(response.parameters.get("variant", "")))

    async def _infer(self, inputs: Mapping[str, Array], context: RequestContext, timeout_s: float) -> InferResponse:
        parameters: dict[str, Parameter] = {"timeout": max(1, int(timeout_s * 1e6))}
        if context.priority:
            parameters["priority"] = context.priority
        request = InferRequest(
            model=self._model,
            version=self._version,
            inputs=inputs,
            outputs=tuple(spec.name for spec in self._outputs),
            parameters=parameters,
        )
        response = await self._cloud.infer(request, context)
        rows = len(next(iter(inputs.values()))) if self._hosted.arrays.can_split else None
        _check_outputs(response.outputs, self._outputs, rows)
        return response

    def _record(self, error: PenstockError | None, took_s: float, timeout_s: float) -> None:
        now = self._loop.time()
        # a refusal of these inputs, or a call we gave up ourselves, says nothing about whether the cloud is there
        if isinstance(error, InvalidInput | Cancelled):
            return
        is_late = isinstance(error, DeadlineExceeded)
        if error is None or is_late:  # a time-out is a round trip of at least that long
            self._round_trips = self._round_trips.record(max(took_s, timeout_s) if is_late else took_s, now)
            self._p95_s = (0.0, -math.inf)
        if is_late and not is_patient(timeout_s, self._settings):
            return  # one caller was in more of a hurry than the settings are: the estimate above will spare the next
        self._breaker = self._breaker.record(error is None, now)
        if self._breaker.phase == "open" and self._probe is None:
            why = error.message if error else ""
            telemetry.log(_LOG, logging.WARNING, "the cloud is out of reach", model=self._model, why=why)
            self._probe = self._loop.create_task(self._look_until_back())

    async def _look_until_back(self) -> None:
        """Ask now and then whether the cloud can serve this model again. No request ever waits for the answer."""
        try:
            while self._breaker.phase != "closed" and not self._hosted.is_retired:
                jitter = 1 + 0.25 * random.random()  # a fleet that lost its cloud together must not return together
                await asyncio.sleep(self._breaker.wait_s(self._loop.time()) * jitter)
                self._breaker, is_allowed = self._breaker.allows(self._loop.time())
                if is_allowed:
                    is_back = await self._cloud.is_model_ready(self._model, self._version) and await self._answers()
                    self._breaker = self._breaker.record(is_back, self._loop.time())
            if not self._hosted.is_retired:
                telemetry.log(_LOG, logging.INFO, "the cloud is back", model=self._model)
        finally:
            self._probe = None

    async def _answers(self) -> bool:
        """Ask for an inference: a server that says it is ready may hang. What is asked is made up, so a server that
        answers with an error about it is there.
        """
        now, timeout_s = self._loop.time(), self._settings.timeout_s
        context = RequestContext(arrived_at=now, deadline=now + timeout_s, priority=AUDIT_PRIORITY)
        try:
            await self._infer(self._blank, context, timeout_s)
        except (DeadlineExceeded, Unavailable, QueueFull):
            return False
        except PenstockError:
            return True
        return True


def is_patient(timeout_s: float, settings: EscalationSettings) -> bool:
    """Did a call get the time that the settings give it? One in more of a hurry says nothing when it is late."""
    return timeout_s >= 0.9 * settings.timeout_s


def _blank(inputs: Mapping[str, Array], *, can_split: bool) -> Mapping[str, Array]:
    """Zeros, or empty strings, of the shape of the first row; of all rows where the batch is fixed."""
    given = {name: array[:1] if can_split else array for name, array in inputs.items()}
    return {
        name: np.full(array.shape, b"", dtype=object) if array.dtype.kind == "O" else np.zeros_like(array)
        for name, array in given.items()
    }


def _is_finite(inputs: Mapping[str, Array]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in inputs.values() if array.dtype.kind == "f")


def _shape_key(inputs: Mapping[str, Array]) -> tuple[object, ...]:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items())


def _check_outputs(outputs: Mapping[str, Array], specs: Sequence[TensorSpec], rows: int | None) -> None:
    """Refuse an answer of the cloud that is none: it would be merged with the device's own rows.

    Args:
        rows: of every output; None where a request goes up whole, and some outputs need have no rows.

    Raises:
        Internal: an output is missing, or has another datatype, rank or row count.
    """
    for spec in specs:
        array = outputs.get(spec.name)
        if array is None:
            raise Internal(f"the cloud's answer has no output {spec.name!r}")
        try:
            check_tensor(array, spec, field=spec.name)
        except InvalidInput as error:
            raise Internal(f"the cloud's answer does not fit: {error.message}") from error
        if rows is not None and len(array) != rows:
            raise Internal(f"the cloud answered {len(array)} rows of {spec.name!r} for {rows}")
