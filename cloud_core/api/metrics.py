"""``/metrics``: what the data plane and the fleet counted, as Prometheus families. Counts nothing itself.

Base units (seconds, rows), millisecond-level buckets; names follow what Triton's and vLLM's users look for: requests
by outcome, queue and run time, batch size, queued and running as gauges.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cloud_core.fleet.service import FleetService
from cloud_core.serving.dataplane import DataPlane
from penstock.process.histogram import Histogram
from penstock.process.telemetry import dropped_lines


class Metrics(Collector):
    """Everything there is to scrape of one core."""

    def __init__(self, plane: DataPlane, fleet: FleetService, version: str) -> None:
        self._plane, self._fleet, self._version = plane, fleet, version
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, OpenMetrics for scrapers that accept it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Yield all families; called by the client library."""
        info = InfoMetricFamily("penstock_build", "The Penstock that answers.")
        info.add_metric([], {"version": self._version})
        yield info
        yield from self._requests()
        yield from self._batches()
        yield from self._gauges()
        yield from self._promises()

    def _requests(self) -> Iterable[Metric]:
        measures = self._plane.measures
        requests = CounterMetricFamily(
            "penstock_requests", "Finished inference requests by outcome.", labels=["model", "version", "code"]
        )
        rows = CounterMetricFamily("penstock_rows", "Rows that were answered.", labels=["model", "version"])
        duration = HistogramMetricFamily(
            "penstock_request_duration_seconds", "From admission to answer.", labels=["model", "version"]
        )
        for (model, version), route in tuple(measures.routes.items()):
            for code, count in tuple(route.requests.items()):
                requests.add_metric([model, version, code], count)
            rows.add_metric([model, version], route.rows)
            duration.add_metric([model, version], route.duration_s.cumulative(), sum_value=route.duration_s.total)
        refused = CounterMetricFamily(
            "penstock_refused", "Requests that were refused before their payload was decoded.", labels=["code"]
        )
        for code, count in tuple(measures.refused.items()):
            refused.add_metric([code], count)
        yield from (requests, rows, duration, refused)

    def _batches(self) -> Iterable[Metric]:
        labels = ["model", "variant"]
        families = (
            (HistogramMetricFamily("penstock_batch_rows", "Rows in a batch.", labels=labels), "rows"),
            (HistogramMetricFamily("penstock_batch_duration_seconds", "Running a batch.", labels=labels), "run_s"),
            (HistogramMetricFamily("penstock_queue_duration_seconds", "Waiting to run.", labels=labels), "queue_s"),
        )
        for (model, variant), batch in tuple(self._plane.measures.batches.items()):
            for family, name in families:
                histogram: Histogram = getattr(batch, name)
                family.add_metric([model, variant], histogram.cumulative(), sum_value=histogram.total)
        for family, _ in families:
            yield family

    def _gauges(self) -> Iterable[Metric]:
        plane = self._plane
        queued = GaugeMetricFamily("penstock_queue_rows", "Rows that wait now.", labels=["model", "variant"])
        running = GaugeMetricFamily("penstock_running_rows", "Rows that run now.", labels=["model", "variant"])
        replicas = GaugeMetricFamily("penstock_replicas", "Loaded replicas.", labels=["model", "variant"])
        for served in plane.served():
            labels = [served.variant.spec.model, served.variant.digest]
            queued.add_metric(labels, sum(q.queue_rows for q in served.queues))
            running.add_metric(labels, sum(q.running_rows for q in served.queues))
            replicas.add_metric(labels, len(served.queues))
        yield from (queued, running, replicas)
        inflight, lag_s = plane.measures.inflight, plane.measures.loop_lag_s
        yield GaugeMetricFamily("penstock_inflight_requests", "Admitted and not yet answered.", inflight)
        held = plane.measures.inflight_bytes
        yield GaugeMetricFamily("penstock_inflight_bytes", "Bytes of these requests, as admission counts them.", held)
        yield GaugeMetricFamily("penstock_ready", "1 when requests are admitted.", float(plane.is_ready))
        yield GaugeMetricFamily("penstock_live", "1 unless an engine hangs.", float(plane.is_live))
        yield GaugeMetricFamily("penstock_event_loop_lag_seconds", "How late the last heartbeat was.", lag_s)
        yield CounterMetricFamily("penstock_dropped_log_lines", "Log lines that nobody read.", dropped_lines())

    def _promises(self) -> Iterable[Metric]:
        labels = ["model", "artifact", "certificate"]
        evidence = GaugeMetricFamily(
            "penstock_fleet_evidence", "Against the promise, by all devices; 1 is an alarm.", labels=labels
        )
        alarm = GaugeMetricFamily(
            "penstock_fleet_alarm", "1 once the fleet has seen more harm than was certified.", labels=labels
        )
        for promise in self._fleet.promises():
            names = [promise.model, promise.artifact_digest, promise.certificate_digest]
            evidence.add_metric(names, promise.evidence / promise.run_length)
            alarm.add_metric(names, float(promise.alarmed_at is not None))
        yield from (evidence, alarm)
        yield GaugeMetricFamily(
            "penstock_fleet_duplicated_devices", "Ids under which several agents report.", self._fleet.duplicated
        )
