"""Settings of traces, apart from what sends them: that needs a library which few install."""

from __future__ import annotations

from typing import Annotated

import msgspec


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Spans of requests, sent by OTLP over HTTP (extra ``otel``).

    Attributes:
        endpoint: of a collector, such as ``http://127.0.0.1:4318``; "" sends none.
        share: of requests that are traced where their caller has not decided.
        follow_callers: trace what a caller's ``traceparent`` says is traced, and nothing else of callers that have one.
        service: what the collector calls this process; "" for its kind.
        max_waiting_spans: that wait to be sent; more are dropped.
        send_every_s: how often they are sent.
        timeout_s: that sending may take, all tries together; also at the end of the process.
    """

    endpoint: str = ""
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.01
    follow_callers: bool = True
    service: str = ""
    max_waiting_spans: Annotated[int, msgspec.Meta(ge=64, le=1_000_000)] = 2048
    send_every_s: Annotated[float, msgspec.Meta(ge=0.05, le=300.0)] = 2.0
    timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=60.0)] = 5.0
