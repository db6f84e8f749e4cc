"""Remembers why requests were refused or failed: counts by reason, and the last of them with their words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from cloud_core.observing.finished import Finished

_MAX_REASONS = 10_000


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One request that was not answered. ``at``: when, UTC."""

    at: datetime
    code: str
    why: str
    model: str
    version: str
    tenant: str
    transport: str
    request_id: str


class Refusals:
    """What was refused. Hears of failures only: what is answered costs nothing.

    Attributes:
        counts: by model ("" before one was known) and code.
        last: the latest ones, oldest first.
    """

    def __init__(self, max_kept: int, *, at: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self.last: deque[Refusal] = deque(maxlen=max_kept)
        self._at = at

    def finished(self, request: Finished) -> None:
        """Remember one."""
        key = (request.model, request.code)
        if key in self.counts or len(self.counts) < _MAX_REASONS:
            self.counts[key] = self.counts.get(key, 0) + 1
        self.last.append(
            Refusal(
                at=self._at(),
                code=request.code,
                why=request.why,
                model=request.model,
                version=request.version,
                tenant=request.tenant,
                transport=request.transport,
                request_id=request.request_id,
            )
        )

    def document(self) -> dict[str, Any]:
        """Write counts, most frequent first, and the last ones, newest first."""
        counts = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return {
            "refused": [{"model": model, "code": code, "requests": count} for (model, code), count in counts],
            "last": [msgspec.to_builtins(one) for one in reversed(self.last)],
        }
