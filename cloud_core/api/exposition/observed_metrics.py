"""The part of ``/metrics`` that is there where it is asked for: by tenant and arm, and under Triton's names."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)

from cloud_core.observing.drift import Drift
from cloud_core.observing.observing import Observing
from cloud_core.observing.slo import Slos
from cloud_core.observing.traffic import Traffic
from cloud_core.policy.slo import window_name
from cloud_core.serving.counters import Measures
from cloud_core.serving.dataplane import DataPlane
from cloud_core.serving.router import Served

_MICROSECONDS = 1e6


def observed(plane: DataPlane, observing: Observing) -> Iterable[Metric]:
    """Yield the families of what this core observes beside what it always counts."""
    yield CounterMetricFamily(
        "penstock_observer_defects", "Requests of which an observer failed to take note.", plane.observers.defects
    )
    if observing.traffic is not None:
        yield from _traffic(observing.traffic)
    if observing.slos is not None:
        yield from _slos(observing.slos)
    if observing.drift is not None:
        yield from _drift(observing.drift)
    if observing.capture is not None:
        yield CounterMetricFamily(
            "penstock_capture_dropped_requests",
            "Requests that were to be kept, and found no room or could not be written.",
            observing.capture.dropped,
        )
    if observing.settings.triton_names:
        yield from _triton(plane)


def _traffic(traffic: Traffic) -> Iterable[Metric]:
    labels = ["model", "version", "tenant", "arm"]
    requests = CounterMetricFamily(
        "penstock_traffic_requests",
        "Finished requests by who asked, by arm of a split and by outcome.",
        labels=[*labels, "code"],
    )
    rows = CounterMetricFamily("penstock_traffic_rows", "Rows that were answered, by who asked.", labels=labels)
    tokens = CounterMetricFamily(
        "penstock_traffic_tokens", "Tokens of prompts and answers, by who asked.", labels=labels
    )
    size = CounterMetricFamily(
        "penstock_traffic_request_bytes", "Bytes of requests as admission counts them, by who asked.", labels=labels
    )
    duration = HistogramMetricFamily(
        "penstock_traffic_duration_seconds", "Time of a request from admission to answer, by who asked.", labels=labels
    )
    for key, series in tuple(traffic.series.items()):
        for code, count in tuple(series.requests.items()):
            requests.add_metric([*key, code], count)
        rows.add_metric(key, series.rows)
        tokens.add_metric(key, series.tokens)
        size.add_metric(key, series.request_bytes)
        duration.add_metric(key, series.duration_s.cumulative(), sum_value=series.duration_s.total)
    yield from (requests, rows, tokens, size, duration)


def _slos(slos: Slos) -> Iterable[Metric]:
    labels = ["model", "objective"]
    requests = CounterMetricFamily(
        "penstock_slo_requests", "Requests that count for a promise: what clients did wrong does not.", labels=["model"]
    )
    bad = CounterMetricFamily(
        "penstock_slo_bad_requests", "Requests that were not answered, or answers that took too long.", labels=labels
    )
    target = GaugeMetricFamily("penstock_slo_target", "Share of requests that is promised to be good.", labels=labels)
    rate = GaugeMetricFamily(
        "penstock_slo_burn_rate",
        "Share of requests that were not good over the share that need not be; 1 uses it up exactly.",
        labels=[*labels, "window"],
    )
    now = perf_counter()
    for model, record in tuple(slos.records.items()):
        objectives = slos.objectives(model)
        if objectives is None:
            continue
        requests.add_metric([model], record.ever.requests)
        bad.add_metric([model, "answered"], record.ever.failed)
        bad.add_metric([model, "fast"], record.ever.slow)
        target.add_metric([model, "answered"], objectives.answered)
        target.add_metric([model, "fast"], objectives.fast)
        for one in record.burning(objectives, now):
            if one.rate is not None:
                rate.add_metric([model, one.objective, window_name(one.window_s)], one.rate)
    yield from (requests, bad, target, rate)


def _drift(drift: Drift) -> Iterable[Metric]:
    labels = ["model", "version"]
    psi = GaugeMetricFamily(
        "penstock_drift_psi",
        "Population stability index of a column of rows against its reference; above 0.2 is a shift.",
        labels=[*labels, "feature"],
    )
    shifted = GaugeMetricFamily(
        "penstock_drift_shifted_features", "Columns of rows that are not distributed as they were.", labels=labels
    )
    for key, distances in drift.distances().items():
        for name, found in distances.items():
            psi.add_metric([*key, name], found.psi)
        shifted.add_metric(key, len(drift.shifted(key)))
    yield from (psi, shifted)
    yield CounterMetricFamily(
        "penstock_drift_skipped_rows", "Rows that were not looked at, because too many waited for it.", drift.skipped
    )


def _triton(plane: DataPlane) -> Iterable[Metric]:
    """Yield the counts of models under Triton's names. Untyped: Triton's counters have no ``_total``, which the type
    would add."""
    labels = ["model", "version"]
    success = UnknownMetricFamily(
        "nv_inference_request_success", "Requests that were answered, as Triton names them.", labels=labels
    )
    failure = UnknownMetricFamily(
        "nv_inference_request_failure", "Requests that were not, as Triton names them.", labels=[*labels, "reason"]
    )
    count = UnknownMetricFamily("nv_inference_count", "Rows that were answered, as Triton names them.", labels=labels)
    duration = UnknownMetricFamily(
        "nv_inference_request_duration_us", "Sum of times of requests, in microseconds.", labels=labels
    )
    for (model, version), route in tuple(plane.measures.routes.items()):
        at = [model, version]
        success.add_metric(at, route.requests.get("ok", 0))
        count.add_metric(at, route.rows)
        duration.add_metric(at, round(route.duration_s.total * _MICROSECONDS))
        for code, failed in tuple(route.requests.items()):
            if code != "ok":
                failure.add_metric([*at, code.upper()], failed)
    yield from (success, failure, count, duration, *_triton_batches(plane, plane.measures))


def _triton_batches(plane: DataPlane, measures: Measures) -> Iterable[Metric]:
    """Yield what runs took. Two versions that share a variant share its figures."""
    labels = ["model", "version"]
    runs = UnknownMetricFamily("nv_inference_exec_count", "Batches that ran, as Triton names them.", labels=labels)
    queued = UnknownMetricFamily(
        "nv_inference_queue_duration_us", "Sum of times that requests waited, in microseconds.", labels=labels
    )
    computed = UnknownMetricFamily(
        "nv_inference_compute_infer_duration_us", "Sum of times that batches ran, in microseconds.", labels=labels
    )
    pending = UnknownMetricFamily(
        "nv_inference_pending_request_count", "Rows that wait now, as Triton names requests.", labels=labels
    )
    for version, served in plane.served_versions():
        batch = measures.batches.get((version.model, served.variant.digest))
        if batch is None or not isinstance(served, Served):
            continue
        at = [version.model, version.tag]
        runs.add_metric(at, sum(batch.run_s.counts))
        queued.add_metric(at, round(batch.queue_s.total * _MICROSECONDS))
        computed.add_metric(at, round(batch.run_s.total * _MICROSECONDS))
        pending.add_metric(at, sum(queue.queue_rows for queue in served.queues))
    yield from (runs, queued, computed, pending)
