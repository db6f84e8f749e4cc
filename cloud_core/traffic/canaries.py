"""Looks at the splits that are under way, has them judged, and takes the steps that follow.

Observe, decide, act: what the arms did is counted by ``serving.lanes``, what follows is decided by ``policy.canary``,
and done by ``service``. Level-triggered: looking at any time, twice, or after a kill is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from cloud_core.policy import canary
from cloud_core.policy.canary import FAULTS, Evidence
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.policy.traffic import Arm, Split
from cloud_core.registry.registry import Registry
from cloud_core.serving.counters import Measures, RouteMeasures
from cloud_core.serving.lanes import Lanes
from cloud_core.traffic.service import TrafficService
from penstock.errors import NotFound, PenstockError
from penstock.process.histogram import Histogram
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
WHO = "core (gate of the split)"


class Canaries:
    """Watches the arms of all splits."""

    def __init__(
        self,
        service: TrafficService,
        registry: Registry,
        lanes: Lanes,
        measures: Measures,
        now: Callable[[], datetime],
    ) -> None:
        self._service, self._registry, self._lanes, self._measures, self._now = service, registry, lanes, measures, now

    async def run(self) -> None:
        """Look again and again while there is a split. Runs until cancelled."""
        while True:
            self._service.news.clear()
            await self.look()
            if self._service.splits():
                await asyncio.sleep(self._service.settings.look_s)
            else:
                await self._service.news.wait()

    async def look(self) -> None:
        """Look at every split once."""
        for model, split in self._service.splits().items():
            try:
                await self._look(model, split)
            except PenstockError as error:  # a full disk, or a model that devices run since: it is tried again
                log(_log, logging.WARNING, "a split waits", model=model, reason=error.message)

    async def _look(self, model: str, split: Split) -> None:
        if reason := self._over(model, split):
            await self._service.end(model, Operator(who=WHO, reason=reason))
            return
        if not split.gate.slow_s:
            usual = self._measures.route(model, self._registry.resolve(model).tag).duration_s
            slow_s = canary.slow_limit(usual.bounds, usual.counts)
            if slow_s:
                await self._service.freeze(model, split, slow_s)
                return  # what was kept is looked at next
        now = self._now().timestamp()
        verdicts = canary.judge(split, {arm.name: self._evidence(model, split, arm) for arm in split.arms}, now)
        self._service.verdicts[model] = verdicts
        step = canary.decide(split, verdicts, now=now)
        await self._service.take(model, split, step, Operator(who=WHO, reason=step.reason))

    def _over(self, model: str, split: Split) -> str:
        """Say why a split has no meaning any more; "" while it has one."""
        for arm in split.arms:
            try:
                if self._registry.resolve(model, arm.digest).is_default:
                    return f"{arm.name} is the default version"
            except NotFound:
                return f"{arm.name} was deleted from the registry"
        return ""

    def _evidence(self, model: str, split: Split, arm: Arm) -> Evidence:
        counts = self._lanes.arms.get((model, arm.name), RouteMeasures())
        failed = sum(count for code, count in counts.requests.items() if code in FAULTS)
        shadow = self._lanes.shadows.get(model)
        compared = disagreed = 0
        if shadow is not None and shadow.shadow.digest == arm.digest:
            for rows in shadow.counts.values():
                disagreed += rows.disagreed + rows.failed
                compared += rows.agreed + rows.disagreed + rows.failed
        requests = counts.requests.get("ok", 0) + failed
        slow_s = split.gate.slow_s
        return Evidence(
            requests=requests,
            failed=failed,
            slow=min(_above(counts.duration_s, slow_s), requests) if slow_s else None,
            compared=compared,
            disagreed=disagreed,
        )


def _above(durations: Histogram, limit_s: float) -> int:
    """Count what took longer, as far as the bounds tell: of a bound, only what is above all of it."""
    above = [count for bound, count in zip(durations.bounds, durations.counts, strict=False) if bound > limit_s]
    return sum(above) + durations.counts[-1]
