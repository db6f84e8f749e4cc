"""Spans of requests, sent by OTLP over HTTP. The only module that imports OpenTelemetry's SDK (extra ``otel``).

Which requests are traced is ``penstock.policy.trace_sampling``'s decision. Spans leave in batches from a thread of the
SDK; what it cannot send it drops, and a request never waits for it. Times are by ``time.perf_counter``.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

from penstock.errors import missing_extra
from penstock.policy.trace_sampling import is_traced
from penstock.process.trace_settings import TraceSettings

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    from opentelemetry.trace import Link, NonRecordingSpan, Span, StatusCode, TraceFlags
    from opentelemetry.trace import SpanContext as SpanContext
    from opentelemetry.trace import SpanKind as SpanKind
except ImportError as error:
    raise missing_extra("opentelemetry-sdk", "otel", "sending traces") from error

SERVER, CLIENT, INTERNAL = SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL
Attributes = Mapping[str, str | int | float | bool]

_TRACES = "/v1/traces"
_NS = 1e9


class Tracer:
    """Makes spans and sends them.

    Attributes:
        is_on: whether any request is traced.
        share: of requests that are traced where their callers have not decided.
    """

    def __init__(self, settings: TraceSettings, service: str, *, draw: Callable[[], float] = random.random) -> None:
        """
        Args:
            service: what the collector calls this process where settings name nothing.
            draw: uniform in [0, 1).
        """
        self._settings, self._draw = settings, draw
        self.is_on, self.share = True, settings.share
        exporter = OTLPSpanExporter(
            endpoint=settings.endpoint.rstrip("/") + _TRACES, timeout=settings.timeout_s, headers={}
        )
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=settings.max_waiting_spans,
            max_export_batch_size=min(512, settings.max_waiting_spans),
            schedule_delay_millis=settings.send_every_s * 1e3,
        )
        names = {"service.name": settings.service or service, "service.version": version("penstock")}
        # not registered as the process's provider, and not with its exit: the owner closes it
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create(names), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("penstock", version("penstock"))

    def wants(self, traceparent: str) -> bool:
        """Say whether a request that came with this trace context, or with none, is traced."""
        share = self.share
        draw = self._draw() if share else 1.0
        return self.is_on and is_traced(traceparent, share=share, follows=self._settings.follow_callers, draw=draw)

    def begin(self, name: str, parent: str | SpanContext, kind: SpanKind, links: Iterable[SpanContext] = ()) -> Span:
        """Begin a span now. Whoever begins it ends it."""
        return self._tracer.start_span(
            name, context=_context(parent), kind=kind, links=[Link(context) for context in links]
        )

    def note(
        self,
        name: str,
        parent: str | SpanContext,
        *,
        began_at: float,
        took_s: float,
        kind: SpanKind = INTERNAL,
        attributes: Attributes | None = None,
        links: Iterable[SpanContext] = (),
        error: str = "",
    ) -> SpanContext:
        """Note what is over, and return what its parts have for their parent.

        Args:
            parent: a traceparent, or what was returned for it; "" begins a trace.
            began_at: by ``time.perf_counter``.
            error: why it failed; "" where it did not.
        """
        began_ns = time.time_ns() - int((time.perf_counter() - began_at) * _NS)
        span = self._tracer.start_span(
            name,
            context=_context(parent),
            kind=kind,
            attributes=dict(attributes or {}),
            links=[Link(context) for context in links],
            start_time=began_ns,
        )
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end(began_ns + max(0, int(took_s * _NS)))
        return span.get_span_context()

    def close(self) -> None:
        """Send what waits, for at most ``timeout_s``: a collector that hangs must not keep the process."""
        # a daemon: what it still does then ends with the process
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(self._settings.timeout_s)


def traceparent_of(span: Span) -> str:
    """Return the trace context that makes what comes next a part of this span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def fail(span: Span, why: str) -> None:
    """Say that what a span stands for failed."""
    span.set_status(StatusCode.ERROR, why)


def parent_of(traceparent: str) -> SpanContext:
    """Read a well-formed trace context of version 00."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _context(parent: str | SpanContext) -> Context:
    """Make what the SDK looks for a parent in: nothing of what else this process may trace."""
    if not parent:
        return Context()
    context = parent_of(parent) if isinstance(parent, str) else parent
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
