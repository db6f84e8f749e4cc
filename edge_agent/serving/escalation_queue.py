"""The way up for the uncertain rows of one model version: rows of concurrent requests joined into calls.

Owns the queue, the calls in flight, the circuit breaker and the round-trip estimate of one model version. Whether a row
should go up is ``policy.cascade``, whether it may is ``policy.egress``; how bytes travel is the ``Cloud`` it is given.
An unreachable cloud costs a request nothing: the lane is shut, and looked at in the background.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge_agent.policy.egress import RoundTrips
from edge_agent.serving.hosting import Hosted
from edge_agent.settings import EscalationSettings
from penstock.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    PenstockError,
    QueueFull,
    Unavailable,
)
from penstock.policy.batching import BatchLimits, Queued, plan_batch
from penstock.policy.retry import CircuitBreaker
from penstock.process import telemetry
from penstock.wire.inference import InferRequest, InferResponse, Parameter
from penstock.wire.tensors import Array, TensorSpec, check_tensor

CALLS_IN_FLIGHT = 4
"""Per lane. The first rows go at once; while this many calls are under way, rows gather for the next one."""

AUDIT_PRIORITY = 9
"""Sent with audit calls: below every request that somebody waits for."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAnswer:
    """What the cloud gave for rows. ``variant`` is the digest of the variant that gave it; "" if it does not say."""

    outputs: Mapping[str, Array]
    variant: str


@dataclass(slots=True, eq=False)
class _Chunk:
    inputs: Mapping[str, Array]
    queued: Queued
    give_up_at: float
    future: asyncio.Future[CloudAnswer]
    is_queued: bool = True
    call: _Call | None = None


@dataclass(slots=True, eq=False)
class _Call:
    chunks: Sequence[_Chunk]
    task: asyncio.Task[None] | None = None
    waiting: int = field(default=0)


class Cloud(Protocol):
    """A server of the Open Inference Protocol, as far as a lane needs it."""

    async def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        """One call.

        Raises:
            PenstockError: no answer, or one that is not a response.
        """
        ...

    async def is_model_ready(self, model: str, version: str) -> bool:
        """Can it serve this model now? False also when it cannot be asked."""
        ...


class Lane:
    """The way up for one model version. All methods are called from the event loop."""

    def __init__(self, cloud: Cloud, hosted: Hosted, settings: EscalationSettings) -> None:
        self._cloud = cloud
        self._hosted = hosted
        self._timeout_s = settings.timeout_s
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._model = hosted.plan.model
        self._version = hosted.plan.artifact_digest if settings.model_version == "digest" else ""
        self._outputs = hosted.metadata.outputs
        self._limits = BatchLimits(
            max_rows=settings.max_rows if hosted.can_split else 1,  # a fixed batch is sent as it is
            max_delay_s=settings.max_delay_s,
            max_queue_rows=settings.max_queue_rows,
        )
        self._breaker = CircuitBreaker(failure_limit=settings.breaker_failures, open_s=settings.breaker_open_s)
        self._round_trips = RoundTrips()
        self._p95_s = (0.0, -math.inf)  # value, when computed
        self._queue: list[_Chunk] = []
        self._queued_rows = 0
        self._calls: set[_Call] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Lane({self._model}, {self._breaker.phase}, queued_rows={self._queued_rows}, calls={len(self._calls)})"

    @property
    def is_reachable(self) -> bool:
        """Is the circuit closed? Never true while a background probe has yet to find the cloud back."""
        return self._breaker.phase == "closed"

    @property
    def is_idle(self) -> bool:
        """Nothing queued, nothing under way, and nothing to look for in the background."""
        return not self._queue and not self._calls and self._probe is None

    @property
    def free_rows(self) -> int:
        """Rows that the queue has room for."""
        return self._limits.max_queue_rows - self._queued_rows

    def p95_s(self) -> float:
        """Estimated round trip; see ``RoundTrips.p95_s``."""
        now = self._loop.time()
        value, at = self._p95_s
        if now - at > 0.25:  # often enough for a policy that looks back over half a minute
            value = self._round_trips.p95_s(now)
            self._p95_s = (value, now)
        return value

    async def ask(self, inputs: Mapping[str, Array], rows: int, *, timeout_s: float, priority: int = 0) -> CloudAnswer:
        """Send ``rows`` rows up, together with those of others, and wait for the answer.

        Raises:
            DeadlineExceeded: no answer within ``timeout_s``. QueueFull: too many rows wait.
            PenstockError: whatever the cloud answered instead; Internal when its answer makes no sense.
        """
        if self._is_closed:
            raise Unavailable("the agent is stopping")
        if rows > self.free_rows:
            raise QueueFull(f"{self._queued_rows} rows wait for the cloud (escalation.max_queue_rows)")
        now = self._loop.time()
        give_up_at = now + timeout_s
        queued = Queued(rows=rows, arrived_at=now, deadline=give_up_at, priority=priority, shape_key=_shape_key(inputs))
        chunk = _Chunk(inputs, queued, give_up_at, self._loop.create_future())
        self._queue.append(chunk)
        self._queued_rows += rows
        self._pump()
        try:
            async with asyncio.timeout_at(give_up_at):
                return await chunk.future
        except TimeoutError:
            raise DeadlineExceeded(f"the cloud did not answer within {timeout_s:.3f} s") from None
        except asyncio.CancelledError:
            self._abandon(chunk)
            raise
        finally:
            self._withdraw(chunk)

    async def ask_alone(self, inputs: Mapping[str, Array], *, timeout_s: float) -> CloudAnswer:
        """One call of its own at low priority, past the queue: for audits, of which there is one at a time.

        Raises:
            PenstockError: no usable answer.
        """
        return await self._call(inputs, timeout_s, priority=AUDIT_PRIORITY)

    async def close(self) -> None:
        """Refuse what waits and cancel what is under way."""
        self._is_closed = True
        tasks = [call.task for call in self._calls if call.task is not None]
        if self._probe is not None:
            tasks.append(self._probe)
        if self._timer is not None:
            self._timer.cancel()
        for chunk in self._queue:
            chunk.is_queued = False
            _settle(chunk, Unavailable("the agent is stopping"))
        self._queue, self._queued_rows = [], 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pump(self) -> None:
        """Plan and dispatch until nothing may go; harmless at any time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and len(self._calls) < CALLS_IN_FLIGHT:
            plan = plan_batch([chunk.queued for chunk in self._queue], self._limits, self._loop.time())
            dispatched = [self._queue[index] for index in plan.dispatch]
            for chunk in [self._queue[index] for index in plan.expire]:
                _settle(chunk, DeadlineExceeded("the deadline passed while the row waited for the cloud"))
            gone = {*plan.dispatch, *plan.expire}
            self._queued_rows -= sum(self._queue[index].queued.rows for index in gone)
            for index in gone:
                self._queue[index].is_queued = False
            self._queue = [chunk for chunk in self._queue if chunk.is_queued]
            if dispatched:
                self._dispatch(dispatched)
            else:
                if plan.wake_at is not None:
                    self._timer = self._loop.call_at(plan.wake_at, self._pump)
                return

    def _withdraw(self, chunk: _Chunk) -> None:
        """The caller of a chunk that still waits has gone: nothing of it is sent."""
        if chunk.is_queued:
            chunk.is_queued = False
            self._queue.remove(chunk)
            self._queued_rows -= chunk.queued.rows

    def _dispatch(self, chunks: Sequence[_Chunk]) -> None:
        call = _Call(chunks, waiting=len(chunks))
        for chunk in chunks:
            chunk.call = call
        call.task = self._loop.create_task(self._carry(call))
        self._calls.add(call)

    def _abandon(self, chunk: _Chunk) -> None:
        """The client of this chunk went away: a call that nobody waits for any more is cancelled."""
        call = chunk.call
        if call is not None:
            call.waiting -= 1
            if call.waiting == 0 and call.task is not None:
                call.task.cancel()

    async def _carry(self, call: _Call) -> None:
        chunks = call.chunks
        try:
            await self._answer(chunks)
        finally:
            for chunk in chunks:
                _settle(chunk, Unavailable("the call to the cloud was given up"))
            self._calls.discard(call)
            self._pump()

    async def _answer(self, chunks: Sequence[_Chunk]) -> None:
        chunks = [chunk for chunk in chunks if not chunk.future.done()]
        if not chunks:
            return
        timeout_s = max(chunk.give_up_at for chunk in chunks) - self._loop.time()
        try:
            answer = await self._call(_joined(chunks), timeout_s)
        except InvalidInput as error:
            half = len(chunks) // 2
            if not half:
                _settle(chunks[0], error)
                return
            await self._answer(chunks[:half])  # one poisoned request must not fail the others
            await self._answer(chunks[half:])
            return
        except PenstockError as error:
            for chunk in chunks:
                _settle(chunk, error)
            return
        start = 0
        for chunk in chunks:
            stop = start + chunk.queued.rows
            outputs = {name: array[start:stop] for name, array in answer.outputs.items()}
            _settle(chunk, CloudAnswer(outputs=outputs, variant=answer.variant))
            start = stop

    async def _call(self, inputs: Mapping[str, Array], timeout_s: float, *, priority: int = 0) -> CloudAnswer:
        if timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed before the cloud was called")
        parameters: dict[str, Parameter] = {"timeout": max(1, int(timeout_s * 1e6))}
        if priority:
            parameters["priority"] = priority
        request = InferRequest(
            model=self._model,
            version=self._version,
            inputs=inputs,
            outputs=tuple(spec.name for spec in self._outputs),
            parameters=parameters,
        )
        rows = len(next(iter(inputs.values())))
        started_at = self._loop.time()
        try:
            response = await self._cloud.infer(request, timeout_s)
            _check_outputs(response.outputs, self._outputs, rows)
        except PenstockError as error:
            self._record(error, self._loop.time() - started_at, timeout_s)
            raise
        self._record(None, self._loop.time() - started_at, timeout_s)
        return CloudAnswer(outputs=response.outputs, variant=str(response.parameters.get("variant", "")))

    def _record(self, error: PenstockError | None, took_s: float, timeout_s: float) -> None:
        now = self._loop.time()
        # a refusal of these inputs, or a call we gave up ourselves, says nothing about whether the cloud is there
        if isinstance(error, InvalidInput | Cancelled):
            return
        is_late = isinstance(error, DeadlineExceeded)
        if error is None or is_late:  # a time-out is a round trip of at least that long
            self._round_trips = self._round_trips.record(max(took_s, timeout_s) if is_late else took_s, now)
            self._p95_s = (0.0, -math.inf)
        if is_late and timeout_s < 0.9 * self._timeout_s:
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
                    is_ready = await self._cloud.is_model_ready(self._model, self._version)
                    self._breaker = self._breaker.record(is_ready, self._loop.time())
            if not self._hosted.is_retired:
                telemetry.log(_LOG, logging.INFO, "the cloud is back", model=self._model)
        finally:
            self._probe = None


def _shape_key(inputs: Mapping[str, Array]) -> tuple[object, ...]:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items())


def _joined(chunks: Sequence[_Chunk]) -> Mapping[str, Array]:
    if len(chunks) == 1:
        return chunks[0].inputs
    return {name: np.concatenate([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs}


def _check_outputs(outputs: Mapping[str, Array], specs: Sequence[TensorSpec], rows: int) -> None:
    """The cloud's answer must be one: it is merged with the device's own rows.

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
        if len(array) != rows:
            raise Internal(f"the cloud answered {len(array)} rows of {spec.name!r} for {rows}")


def _settle(chunk: _Chunk, result: CloudAnswer | PenstockError) -> None:
    if chunk.future.done():
        return
    if isinstance(result, PenstockError):
        chunk.future.set_exception(result)
    else:
        chunk.future.set_result(result)
