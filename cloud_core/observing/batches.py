"""Counts why batches were closed, by model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloud_core.observing.finished import Finished
from penstock.hosting.run_notes import BatchNote

_MAX_MODELS = 1000


@dataclass(slots=True)
class _Closed:
    batches: int = 0
    requests: int = 0
    rows: int = 0


class Batches:
    """Why batches were closed."""

    def __init__(self) -> None:
        self._closed: dict[tuple[str, str], _Closed] = {}

    def finished(self, request: Finished) -> None:
        """Count the batches in which a request ran, each by its first request that is over."""
        for run in request.runs:
            if run.batch is not None and not run.batch.is_counted:
                run.batch.is_counted = True
                self._count(request.model, run.batch)

    def document(self) -> list[dict[str, Any]]:
        """Write what was counted."""
        return [
            {"model": model, "reason": reason, "batches": one.batches, "requests": one.requests, "rows": one.rows}
            for (model, reason), one in sorted(self._closed.items())
        ]

    def _count(self, model: str, batch: BatchNote) -> None:
        key = (model, batch.closed_by)
        closed = self._closed.get(key)
        if closed is None:
            if len(self._closed) >= _MAX_MODELS:
                self._closed.pop(next(iter(self._closed)))
            closed = self._closed[key] = _Closed()
        closed.batches += 1
        closed.requests += batch.requests
        closed.rows += batch.rows
