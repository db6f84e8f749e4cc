"""Writes a line of JSON for each request. Goes where the log goes: a bounded queue that waits for no reader."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from cloud_core.observing.finished import Finished
from penstock.wire.context import TRACE_ID

_encode = msgspec.json.Encoder().encode
_MILLISECONDS = 3


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line; what is not known is left out. Durations are in seconds."""

    at: str
    event: str
    code: str
    duration_s: float
    transport: str = ""
    model: str = ""
    version: str = ""
    arm: str = ""
    tenant: str = ""
    rows: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    request_bytes: int = 0
    queued_s: float | None = None
    ran_s: float | None = None
    batch_rows: int = 0
    request_id: str = ""
    trace_id: str = ""
    why: str = ""


class AccessLog:
    """Logs what is over."""

    def __init__(
        self, write: Callable[[str], object], *, at: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """
        Args:
            write: takes a line, with its end; must not block.
            at: when a line is written.
        """
        self._write, self._at = write, at

    def finished(self, request: Finished) -> None:
        """Write a request's line."""
        batch = request.runs[-1].batch if request.runs else None
        line = _Line(
            at=f"{self._at():%Y-%m-%dT%H:%M:%S.%f}"[:-_MILLISECONDS] + "Z",
            event="request",
            code=request.code,
            duration_s=round(request.duration_s, 6),
            transport=request.transport,
            model=request.model,
            version=request.version,
            arm=request.arm,
            tenant=request.tenant,
            rows=request.rows,
            prompt_tokens=request.prompt_tokens,
            answer_tokens=request.answer_tokens,
            request_bytes=request.request_bytes,
            queued_s=_rounded(request.queued_s),
            ran_s=_rounded(request.ran_s),
            batch_rows=0 if batch is None else batch.rows,
            request_id=request.request_id,
            trace_id=request.traceparent[TRACE_ID],
            why=request.why,
        )
        self._write(_encode(line).decode() + "\n")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
