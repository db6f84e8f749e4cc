from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import pytest

from cloud_core.observing.finished import Finished
from cloud_core.observing.traces import Traces
from penstock.hosting.run_notes import BatchNote, RunNote
from penstock.process.trace_settings import TraceSettings
from penstock.process.tracing import Tracer
from tests.collector import Collector, collecting

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def request_in(batch: BatchNote | None, *, trace: str = "", **changes: Any) -> Finished:
    at = perf_counter() - 2.0
    runs = [] if batch is None else [RunNote(queued_at=at + 0.5, batch=batch)]
    values: dict[str, Any] = {"code": "ok", "model": "mlp", "version": "v1", "tenant": "shop", "transport": "grpc",
                              "started_at": at, "duration_s": 1.5, "runs": runs, "traceparent": trace}  # fmt: skip
    return Finished(**values | changes)


def sent(collector: Collector, *requests: Finished, share: float = 0.0) -> Collector:
    traces = Traces(Tracer(TraceSettings(endpoint=collector.endpoint, share=share), "penstock-core"))
    for request in requests:
        traces.finished(request)
    traces.close()
    return collector


def test_a_request_is_a_span_with_its_wait_and_its_run_under_it(collector: Collector) -> None:
    batch = BatchNote(began_at=perf_counter() - 1.25, took_s=0.5, rows=7, requests=1, closed_by="replica free")
    found = sent(collector, request_in(batch, trace=f"00-{TRACE}-{PARENT}-01"))
    whole, queue, run = found.one("infer mlp"), found.one("queue"), found.one("run")
    assert (whole.trace, whole.parent, whole.service, whole.kind) == (TRACE, PARENT, "penstock-core", 2)
    assert {queue.trace, run.trace} == {TRACE}
    assert {queue.parent, run.parent} == {whole.id}
    assert whole.attributes["penstock.tenant"] == "shop"
    assert run.attributes == {"penstock.batch.rows": 7, "penstock.batch.requests": 1}
    assert whole.ended_ns - whole.began_ns == pytest.approx(1.5e9, abs=1e3)
    assert run.ended_ns - run.began_ns == pytest.approx(0.5e9, abs=1e3)
    assert whole.began_ns < queue.began_ns < queue.ended_ns
    assert queue.ended_ns == pytest.approx(run.began_ns, abs=5e6)


def test_a_batch_is_a_trace_of_its_own_with_links_to_the_traced_requests_in_it(collector: Collector) -> None:
    batch = BatchNote(began_at=perf_counter() - 1.0, took_s=0.5, rows=3, requests=3, closed_by="replica free")
    asked = [
        request_in(batch, trace=f"00-{TRACE}-{PARENT}-01"),
        request_in(batch, trace=f"00-{TRACE}-{PARENT}-00"),
        request_in(batch, trace=f"00-{TRACE[::-1]}-{PARENT}-01"),
    ]
    found = sent(collector, *asked)
    whole = found.one("batch mlp")
    assert whole.links == tuple(span.id for span in found.named("infer mlp"))
    assert len(whole.links) == 2
    assert whole.parent == ""
    assert whole.trace not in (TRACE, TRACE[::-1])


def test_what_failed_says_why_and_what_never_ran_has_no_run(collector: Collector) -> None:
    found = sent(collector, request_in(None, code="rejected-saturated", why="4096 rows wait already"), share=1.0)
    assert [span.name for span in found.spans] == ["infer mlp"]
    span = found.one("infer mlp", penstock__code="rejected-saturated")
    assert (span.status, span.message) == (2, "4096 rows wait already")
    assert span.parent == ""


def test_a_collector_that_is_gone_costs_no_more_than_its_time() -> None:
    settings = TraceSettings(endpoint="http://127.0.0.1:9", share=1.0, timeout_s=0.1)
    traces = Traces(Tracer(settings, "penstock-core"))
    traces.finished(request_in(None))
    traces.close()
