from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

from cloud_core.observing.access_log import AccessLog
from cloud_core.observing.finished import Finished
from cloud_core.observing.traffic import Traffic
from penstock.hosting.run_notes import BatchNote, RunNote

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def finished(**changes: Any) -> Finished:
    run = RunNote(
        queued_at=10.0, batch=BatchNote(began_at=10.25, took_s=0.5, rows=8, requests=3, closed_by="replica free")
    )
    values: dict[str, Any] = {"code": "ok", "model": "mlp", "version": "v1", "tenant": "shop", "rows": 2,
                              "started_at": 9.9, "duration_s": 1.0, "runs": [run]}  # fmt: skip
    return Finished(**values | changes)


def test_tenants_and_arms_are_counted_apart_and_failures_answer_no_rows() -> None:
    traffic = Traffic(max_tenants=5)
    for request in (
        finished(),
        finished(tenant="free", code="rejected-quota"),
        finished(arm="canary", request_bytes=100, prompt_tokens=3, answer_tokens=4),
    ):
        traffic.finished(request)
    assert {key: (one.requests, one.rows, one.tokens, one.request_bytes) for key, one in traffic.series.items()} == {
        ("mlp", "v1", "shop", ""): ({"ok": 1}, 2, 0, 0),
        ("mlp", "v1", "free", ""): ({"rejected-quota": 1}, 0, 0, 0),
        ("mlp", "v1", "shop", "canary"): ({"ok": 1}, 2, 7, 100),
    }


def test_more_tenants_than_have_a_label_share_one() -> None:
    traffic = Traffic(max_tenants=2)
    for index in range(50):
        traffic.finished(finished(tenant=f"tenant-{index}"))
    traffic.finished(finished(tenant="tenant-1"))
    counted = {tenant: one.requests["ok"] for (_, _, tenant, _), one in traffic.series.items()}
    assert counted == {"tenant-0": 1, "tenant-1": 2, "other": 48}


def test_a_line_says_who_asked_what_and_how_long_it_waited_and_ran() -> None:
    out = io.StringIO()
    log = AccessLog(out.write, at=lambda: datetime(2026, 11, 30, 12, 0, 0, 123456, UTC))
    log.finished(finished(request_id="r 1\n", traceparent=TRACEPARENT, transport="grpc", why='no "x"\nhere'))
    log.finished(Finished(code="unauthenticated", is_admitted=False, started_at=0.0))
    assert out.getvalue().count("\n") == 2
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "at": "2026-11-30T12:00:00.123Z", "event": "request", "code": "ok", "duration_s": 1.0, "transport": "grpc",
        "model": "mlp", "version": "v1", "tenant": "shop", "rows": 2, "queued_s": 0.25, "ran_s": 0.5, "batch_rows": 8,
        "request_id": "r 1\n", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "why": 'no "x"\nhere',
    }  # fmt: skip
    assert second == {
        "at": "2026-11-30T12:00:00.123Z", "event": "request", "code": "unauthenticated", "duration_s": 0.0,
    }  # fmt: skip
