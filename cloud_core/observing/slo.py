"""Holds requests against what each model promises. What that means is ``cloud_core.policy.slo``'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cloud_core.observing.finished import Finished
from cloud_core.observing.settings import SloSettings
from cloud_core.policy.slo import Objectives, Record, alarms

ANY = "*"


class Slos:
    """What became of requests for models that promise something.

    Attributes:
        records: by model.
    """

    def __init__(self, settings: Mapping[str, SloSettings]) -> None:
        self.records: dict[str, Record] = {}
        self._objectives: dict[str, Objectives] = {}
        self.replace(settings)

    def replace(self, settings: Mapping[str, SloSettings]) -> None:
        """Hold models to these promises from now on. A model that promises something else is counted from 0."""
        before = {model: self.objectives(model) for model in self.records}
        self._objectives = {
            model: Objectives(answered=one.answered, latency_s=one.latency_s, fast=one.fast)
            for model, one in settings.items()
        }
        for model, objectives in before.items():
            if self.objectives(model) != objectives:
                del self.records[model]

    def finished(self, request: Finished) -> None:
        """Count a request for a model that is known; one that was refused before that is nobody's."""
        if not request.model or (objectives := self.objectives(request.model)) is None:
            return
        record = self.records.get(request.model)
        if record is None:
            record = self.records[request.model] = Record()
        record.count(request.code, request.duration_s, objectives, request.started_at + request.duration_s)

    def objectives(self, model: str) -> Objectives | None:
        """Return what a model promises; None where it promises nothing."""
        return self._objectives.get(model) or self._objectives.get(ANY)

    def documents(self, now: float) -> list[dict[str, Any]]:
        """Say how each model does, by ``time.perf_counter``."""
        return [self._document(model, record, now) for model, record in sorted(self.records.items())]

    def _document(self, model: str, record: Record, now: float) -> dict[str, Any]:
        objectives = self.objectives(model)
        assert objectives is not None  # else nothing was recorded
        burning = record.burning(objectives, now)
        return {
            "model": model,
            "objectives": asdict(objectives),
            "since_start": asdict(record.ever),
            "burning": [asdict(one) for one in burning],
            "alarms": [asdict(one) for one in alarms(burning)],
        }
