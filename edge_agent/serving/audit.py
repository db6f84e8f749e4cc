"""Watches the certificate's promise in service: drawn rows go up in the background and are compared with the cloud.

Owns a bounded queue and one call at a time. A draw counts once its harm is known. What is lost on the way (the cloud
out of reach, another version there) is not counted, and it is lost alike whether the row was kept or not: rows that are
drawn but neither kept nor answered by the cloud take the same way, or their safe arrival would water the evidence down.
Rows that the caller keeps private are never drawn. Draws are not charged to the row budget: their share is bounded, and
a budget that ran out would stop the watch just when the device is busiest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.policy.cascade import usable_rows
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.escalation_queue import CloudAnswer
from edge_agent.serving.hosting import Hosted
from penstock.errors import PenstockError
from penstock.policy.decoding import Answers, joined
from penstock.process import telemetry
from penstock.wire.tensors import Array

GATHER_S = 0.1
"""Nobody waits for an audit: a call for each row would cost the device more than the rows themselves."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows of one request that the audit drew: ``kept`` [N] says which of them the device answered, and
    ``answers`` with what, one entry for each of those."""

    hosted: Hosted
    inputs: Mapping[str, Array]
    answers: Answers
    kept: tuple[bool, ...]


class Auditor:
    """Sends draws up, one call at a time, and tells the model what came of them."""

    def __init__(
        self,
        escalator: Escalator,
        *,
        max_rows: int,
        max_queue_rows: int,
        max_queue_bytes: int,
        timeout_s: float,
        gather_s: float = GATHER_S,
    ) -> None:
        """
        Args:
            max_queue_rows: nothing more is drawn while so many wait.
            max_queue_bytes: nor while their inputs take so many bytes.
            gather_s: how long draws wait for company, unless they fill a call of ``max_rows``.
        """
        self._escalator = escalator
        self._max_rows = max_rows
        self._max_queue_rows, self._max_queue_bytes = max_queue_rows, max_queue_bytes
        self._timeout_s = timeout_s
        self._gather_s = gather_s
        self._queue: deque[Draw] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._filled = asyncio.Event()
        self._resting = asyncio.Event()
        self._resting.set()

    def can_draw(self, hosted: Hosted) -> bool:
        """May rows be drawn now? Only while the model has a promise to watch and a draw could get through."""
        return (
            hosted.certificate is not None
            and self._queued_rows < self._max_queue_rows
            and self._queued_bytes < self._max_queue_bytes
            and self._escalator.queue_of(hosted).is_reachable
        )

    def submit(self, draw: Draw) -> None:
        """Queue a draw. Arrays must not be views of anything larger that would be kept alive."""
        self._queue.append(draw)
        self._queued_rows += len(draw.kept)
        self._queued_bytes += _bytes_of(draw)
        self._resting.clear()
        self._arrived.set()
        if self._queued_rows >= self._max_rows:
            self._filled.set()

    async def rest(self) -> None:
        """Wait until every draw so far was carried out or lost."""
        await self._resting.wait()

    async def run(self) -> None:
        """Carry out draws until cancelled."""
        while True:
            await self._arrived.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s):
                    await self._filled.wait()
            while self._queue:
                await self._carry_out(self._take())
            self._arrived.clear()
            self._filled.clear()
            self._resting.set()

    def _take(self) -> list[Draw]:
        """Take the next draw and those behind it that fit into the same call."""
        first = self._queue.popleft()
        taken, rows, key = [first], len(first.kept), _key(first)
        while self._queue and _key(self._queue[0]) == key and rows + len(self._queue[0].kept) <= self._max_rows:
            rows += len(self._queue[0].kept)
            taken.append(self._queue.popleft())
        self._queued_rows -= rows
        self._queued_bytes -= sum(map(_bytes_of, taken))
        return taken

    async def _carry_out(self, draws: list[Draw]) -> None:
        hosted = draws[0].hosted
        queue = self._escalator.queue_of(hosted)
        if not queue.is_reachable:
            return
        inputs = {name: np.concatenate([draw.inputs[name] for draw in draws]) for name in draws[0].inputs}
        try:
            answer = await queue.ask_alone(inputs, timeout_s=self._timeout_s)
            hosted.note_cloud(answer.variant)
            if hosted.is_certified_cloud(answer.variant):
                _compare(hosted, draws, answer)
        except PenstockError as error:
            telemetry.log(_LOG, logging.DEBUG, "audit lost", model=hosted.plan.model, why=error.message)


def _compare(hosted: Hosted, draws: Sequence[Draw], answer: CloudAnswer) -> None:
    usable = usable_rows(answer.outputs[hosted.plan.variant.spec.score_output])
    was_kept = np.array([is_kept for draw in draws for is_kept in draw.kept], dtype=bool)
    rows = np.flatnonzero(was_kept & usable).tolist()
    edge = [draw.answers for draw in draws if any(draw.kept)]
    # harm without labels: answers that were kept and are not the cloud's
    same = (
        hosted.arrays.decoder.same(joined(edge)[usable[was_kept]], hosted.arrays.answers(answer.outputs, rows))
        if rows
        else None
    )
    harm = 0 if same is None else int(np.count_nonzero(~same))
    hosted.note_audit(audited=int(np.count_nonzero(usable)), harm=harm)


def _bytes_of(draw: Draw) -> int:
    return draw.answers.nbytes + sum([array.nbytes for array in draw.inputs.values()])


def _key(draw: Draw) -> tuple[object, ...]:
    """Draws with equal keys fit into one call; those of a model with a fixed batch never do."""
    if not draw.hosted.arrays.can_split:
        return (id(draw),)
    return (id(draw.hosted), *((name, array.dtype.str, array.shape[1:]) for name, array in draw.inputs.items()))
