"""Watches promises about texts in service: drawn answers are asked of the cloud in the background, and compared.

The counterpart of ``edge_agent.serving.audit`` for texts, with the same rules: what is lost on the way is lost alike
whether the answer was kept or not, and nobody waits. Owns a bounded queue and one call at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.hosting import Hosted
from penstock.errors import PenstockError
from penstock.generation.values import GenerationRequest
from penstock.policy.text_answers import normalised
from penstock.process import telemetry

AUDIT_PRIORITY = 9
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextDraw:
    """A request that the audit drew, with the device's answer if that was kept; None where it was not."""

    hosted: Hosted
    request: GenerationRequest
    kept: str | None


class TextAuditor:
    """Sends draws up, one at a time, and tells the model what came of them."""

    def __init__(self, cloud: CloudTexts, *, max_queue: int, timeout_s: float) -> None:
        """
        Args:
            max_queue: nothing more is drawn while so many wait.
            timeout_s: for one answer of the cloud.
        """
        self._cloud, self._max_queue, self._timeout_s = cloud, max_queue, timeout_s
        self._queue: deque[TextDraw] = deque()
        self._arrived = asyncio.Event()
        self._resting = asyncio.Event()
        self._resting.set()

    def can_draw(self, hosted: Hosted) -> bool:
        """May an answer be drawn now? Only while there is a promise to watch and a draw could get through."""
        return (
            hosted.certificate is not None
            and len(self._queue) < self._max_queue
            and self._cloud.of(hosted).is_reachable
        )

    def submit(self, draw: TextDraw) -> None:
        """Queue a draw."""
        self._queue.append(draw)
        self._resting.clear()
        self._arrived.set()

    async def rest(self) -> None:
        """Wait until every draw so far was carried out or lost."""
        await self._resting.wait()

    async def run(self) -> None:
        """Carry out draws until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                await self._carry_out(self._queue.popleft())
            await self._cloud.forget_retired()
            self._resting.set()

    async def _carry_out(self, draw: TextDraw) -> None:
        hosted = draw.hosted
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            events = await self._cloud.begin(hosted, draw.request, deadline=deadline, priority=AUDIT_PRIORITY)
            async with contextlib.aclosing(events):
                text = "".join([event.text async for event in events])
        except PenstockError as error:
            telemetry.log(_LOG, logging.DEBUG, "audit lost", model=hosted.plan.model, why=error.message)
            return
        answer = hosted.texts.spec.answer
        if not hosted.is_certified_cloud("") or not answer:
            return
        how = answer.normalisation
        is_harm = draw.kept is not None and normalised(draw.kept, how) != normalised(text, how)
        hosted.note_audit(audited=1, harm=int(is_harm))
