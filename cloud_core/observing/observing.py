"""Everybody who observes requests in one core, made from its settings and registered with its data plane."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cloud_core.observing.access_log import AccessLog
from cloud_core.observing.batches import Batches
from cloud_core.observing.drift import Drift
from cloud_core.observing.finished import Observers
from cloud_core.observing.references import carried_reference
from cloud_core.observing.refusals import Refusals
from cloud_core.observing.settings import ObservingSettings, SloSettings
from cloud_core.observing.slo import Slos
from cloud_core.observing.traffic import Traffic
from cloud_core.registry.registry import Registry

if TYPE_CHECKING:
    from cloud_core.observing.capture import Capture
    from cloud_core.observing.traces import Traces
    from penstock.process.tracing import Tracer


class Observing:
    """Observers, each of them None where its settings do not ask for it.

    Attributes:
        settings: what was asked for.
        traffic: counts by tenant and arm.
        slos: holds models to what they promise.
        refusals: why requests were not answered.
        batches: why batches were closed.
        drift: whether rows are distributed as they were.
        capture: keeps a sample of requests.
        tracer: what traces requests.
    """

    def __init__(self, settings: ObservingSettings, registry: Registry, observers: Observers) -> None:
        """Make and register them.

        Args:
            registry: has the artifacts that say how rows should be distributed.
            observers: of a data plane.
        """
        self.settings, self._observers = settings, observers
        self.traffic = Traffic(settings.max_tenants) if settings.traffic else None
        self.slos = Slos(settings.slo) if settings.slo else None
        self.refusals = Refusals(settings.last_refusals) if settings.last_refusals else None
        self.batches = Batches() if settings.batch_reasons else None
        reference_of = partial(carried_reference, registry)
        self.drift = Drift(settings.drift, reference_of) if settings.drift.is_on else None
        self.capture = _capture(settings)
        self.tracer = _tracer(settings)
        self._traces = _traces(self.tracer)
        self._access_log = None if settings.access_log == "off" else AccessLog(lambda line: sys.stderr.write(line))
        self._register(observers)

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Make what has to run while the core does, by name."""
        tasks = {} if self.drift is None else {"drift": self.drift.run()}
        return tasks if self.capture is None else {**tasks, "capture": self.capture.run()}

    def promise(self, slos: Mapping[str, SloSettings]) -> None:
        """Hold models to these promises from now on."""
        if self.slos is not None:
            self.slos.replace(slos)
        elif slos:
            self.slos = Slos(slos)
            self._observers.add(self.slos)

    async def close(self) -> None:
        """Send and write what is left; bounded in time."""
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        if self.capture is not None:
            await self.capture.flush()

    def _register(self, observers: Observers) -> None:
        for observer in (self.traffic, self.slos, self.batches, self.drift, self.capture, self._traces):
            if observer is not None:
                observers.add(observer)
        if self.refusals is not None:
            observers.add(self.refusals, only_failures=True)
        if self._access_log is not None:
            observers.add(self._access_log, only_failures=self.settings.access_log == "refused")


def _capture(settings: ObservingSettings) -> Capture | None:
    if not settings.capture.directory:
        return None
    from cloud_core.observing.capture import Capture  # pyarrow, where it is asked for

    return Capture(settings.capture)


def _tracer(settings: ObservingSettings) -> Tracer | None:
    if not settings.traces.endpoint:
        return None
    from penstock.process.tracing import Tracer  # OpenTelemetry, where it is asked for

    return Tracer(settings.traces, "penstock-core")


def _traces(tracer: Tracer | None) -> Traces | None:
    if tracer is None:
        return None
    from cloud_core.observing.traces import Traces

    return Traces(tracer)
