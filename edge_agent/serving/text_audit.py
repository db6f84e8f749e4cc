"""Watches promises about texts in service: drawn answers are asked of the cloud in the background, and compared.

The counterpart of ``edge_agent.serving.audit`` for texts, with the same rules: what is lost on the way is lost alike
whether the answer was kept or not, and nobody waits. Owns a bounded queue and one call at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as random_module
from collections import deque
from collections.abc import Callable
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
    """A request that the audit drew, with the device's answer if that was kept; None where it was not.

    Attributes:
        prompt: as a text, for whoever grades answers to it.
    """

    hosted: Hosted
    request: GenerationRequest
    kept: str | None
    prompt: str = ""


class TextAuditor:
    """Sends draws up, one at a time, and tells the model what came of them."""

    def __init__(
        self, cloud: CloudTexts, *, max_queue: int, timeout_s: float, random: Callable[[], float] = random_module.random
    ) -> None:
        """
        Args:
            max_queue: nothing more is drawn while so many wait.
            timeout_s: for one answer of the cloud, and for one grade of it.
            random: gives uniform numbers in [0, 1), by which graded answers are counted.
        """
        self._random = random
        self._cloud, self._max_queue, self._timeout_s = cloud, max_queue, timeout_s
        self._queue: deque[TextDraw] = deque()
        self._arrived = asyncio.Event()
        self._resting = asyncio.Event()
        self._resting.set()

    def can_draw(self, hosted: Hosted) -> bool:
        """May an answer be drawn now? Only while there is a promise to watch and a draw could get through.

        Where nothing here could grade it, none is: those that are not kept would count all the same, as good ones.
        """
        return (
            hosted.certificate is not None
            and not hosted.grader.problem
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
        certificate = hosted.certificate
        if certificate is None or not hosted.is_certified_cloud("") or not answer:
            return
        if draw.kept is None:
            hosted.note_audit(audited=1, harm=0)
        elif certificate.opinion is None:
            how = answer.normalisation
            hosted.note_audit(audited=1, harm=int(normalised(draw.kept, how) != normalised(text, how)))
        else:
            share = await hosted.grader.harm(draw.prompt, draw.kept, text, timeout_s=self._timeout_s)
            if share is None:
                hosted.grader.unavailable += 1
            else:
                hosted.note_graded_audit(share=share, random=self._random())
