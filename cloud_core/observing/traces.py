"""Spans of requests that are over: the request, its wait in the queue, its run, and each batch with links to who was
in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloud_core.observing.finished import Finished
from penstock.hosting.run_notes import BatchNote, RunNote
from penstock.process.tracing import INTERNAL, SERVER, Attributes, SpanContext, Tracer

_MAX_OPEN_BATCHES = 1024


@dataclass(slots=True)
class _Batch:
    """A batch of which some requests are over.

    Attributes:
        over: how many.
        traced: those of them that are traced.
    """

    note: BatchNote
    model: str
    over: int = 0
    traced: list[SpanContext] = field(default_factory=list)


class Traces:
    """Makes spans of requests."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._batches: dict[int, _Batch] = {}

    def finished(self, request: Finished) -> None:
        """Note a request where it is traced, and its batches when everybody in them is over."""
        span = self._request(request) if self._tracer.wants(request.traceparent) else None
        for run in request.runs:
            if run.batch is not None:
                self._count(run.batch, request.model, span)

    def close(self) -> None:
        """Send what is left."""
        for key in tuple(self._batches):
            self._end(key)
        self._tracer.close()

    def _request(self, request: Finished) -> SpanContext:
        span = self._tracer.note(
            f"infer {request.model}" if request.model else "infer",
            request.traceparent,
            began_at=request.started_at,
            took_s=request.duration_s,
            kind=SERVER,
            attributes=_attributes(request),
            error="" if request.code == "ok" else request.why or request.code,
        )
        for run in request.runs:
            self._run(run, span)
        return span

    def _run(self, run: RunNote, parent: SpanContext) -> None:
        batch, queued_s = run.batch, run.queued_s
        if batch is None or queued_s is None:
            return
        self._tracer.note("queue", parent, began_at=run.queued_at, took_s=queued_s)
        self._tracer.note(
            "run", parent, began_at=batch.began_at, took_s=batch.took_s, attributes=_size(batch), kind=INTERNAL
        )

    def _count(self, note: BatchNote, model: str, span: SpanContext | None) -> None:
        key = id(note)
        batch = self._batches.get(key)
        if batch is None:
            if len(self._batches) >= _MAX_OPEN_BATCHES:  # of requests that take long after their run
                self._end(next(iter(self._batches)))
            batch = self._batches[key] = _Batch(note, model)  # holds the note, so that its id is nobody else's
        batch.over += 1
        if span is not None:
            batch.traced.append(span)
        if batch.over >= note.requests:
            self._end(key)

    def _end(self, key: int) -> None:
        batch = self._batches.pop(key)
        if batch.traced:
            self._tracer.note(
                f"batch {batch.model}",
                "",
                began_at=batch.note.began_at,
                took_s=batch.note.took_s,
                attributes=_size(batch.note),
                links=batch.traced,
            )


def _size(batch: BatchNote) -> Attributes:
    return {"penstock.batch.rows": batch.rows, "penstock.batch.requests": batch.requests}


def _attributes(request: Finished) -> Attributes:
    found: dict[str, str | int] = {
        "penstock.model": request.model,
        "penstock.version": request.version,
        "penstock.variant": request.variant,
        "penstock.arm": request.arm,
        "penstock.tenant": request.tenant,
        "penstock.request_id": request.request_id,
        "penstock.code": request.code,
        "penstock.rows": request.rows,
        "penstock.prompt_tokens": request.prompt_tokens,
        "penstock.answer_tokens": request.answer_tokens,
        "network.protocol.name": request.transport,
    }
    return {name: value for name, value in found.items() if value}
