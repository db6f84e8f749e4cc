"""The trace that an application is in, where it uses OpenTelemetry: what a client passes on. Imports nothing for it."""

from __future__ import annotations

import sys

_API = "opentelemetry.trace"


def current_traceparent() -> str:
    """Return the trace context of the application's current span; "" without one.

    An application that has a span has imported OpenTelemetry: one that has not pays a look into a dictionary.
    """
    api = sys.modules.get(_API)
    if api is None:
        return ""
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
