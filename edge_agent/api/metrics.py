"""What ``/metrics`` shows, collected when it is asked for: the request path only adds to plain numbers.

Owns names and labels. Names follow Prometheus' conventions: base units, ``_total`` for counters.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving.dataplane import Pipeline
from penstock.wire.outcomes import COUNTERS, MEANINGS, OUTCOMES

CONTENT_TYPE = CONTENT_TYPE_LATEST
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Latencies:
    """A histogram of request durations in seconds."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, took_s: float) -> None:
        """Add one request."""
        self._counts[bisect.bisect_left(BUCKETS_S, took_s)] += 1
        self.sum_s += took_s

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, requests at or below it), as Prometheus wants it."""
        bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
        total = 0
        buckets = []
        for bound, count in zip(bounds, self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics(Collector):
    """Reads the data path's numbers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.latencies = Latencies()
        self.responses: dict[int, int] = {}
        self._pipeline = pipeline
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def observe(self, status: int, took_s: float) -> None:
        """Account for one inference request, answered with this HTTP status."""
        self.latencies.observe(took_s)
        self.responses[status] = self.responses.get(status, 0) + 1

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry."""
        yield from self._requests()
        yield from self._models()
        yield from self._cloud()

    def _requests(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(
            "penstock_agent_request_duration_seconds",
            "Inference requests by duration, refused ones included.",
            buckets=self.latencies.cumulative(),
            sum_value=self.latencies.sum_s,
        )
        responses = CounterMetricFamily(
            "penstock_agent_responses", "Answers to inference requests by HTTP status.", labels=["status"]
        )
        for status, count in sorted(self.responses.items()):
            responses.add_metric([str(status)], count)
        yield responses
        load = self._pipeline.load
        yield GaugeMetricFamily("penstock_agent_rows_in_flight", "Admitted rows not yet answered.", load.rows)
        yield GaugeMetricFamily(
            "penstock_agent_rows_in_flight_limit", "limits.max_queue_rows.", self._pipeline.limits.max_queue_rows
        )

    def _models(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        rows = CounterMetricFamily(
            "penstock_agent_rows", "Rows by outcome; every admitted row has one.", labels=[*labels, "outcome"]
        )
        # counters that come on top of a row's outcome have a family each (scripts/generate_docs.py does as this does)
        others = {
            name: CounterMetricFamily(f"penstock_agent_{name}_rows", MEANINGS[name], labels=labels)
            for name in COUNTERS
            if name not in OUTCOMES
        }
        mode = GaugeMetricFamily("penstock_agent_cascade_mode", "1 for the mode in force.", labels=[*labels, "mode"])
        failures = CounterMetricFamily(
            "penstock_agent_engine_failures", "Requests that the engine failed.", labels=labels
        )
        for hosted in self._pipeline.hosting.hosted():
            names = [hosted.plan.model, hosted.plan.version]
            counts = hosted.counts
            for outcome in OUTCOMES:
                rows.add_metric([*names, outcome], getattr(counts, outcome))
            for name, family in others.items():
                family.add_metric(names, getattr(counts, name))
            failures.add_metric(names, hosted.failures)
            for each in CascadeMode:
                mode.add_metric([*names, each.value], float(each is hosted.mode))
        yield from (rows, *others.values(), failures, mode)

    def _cloud(self) -> Iterator[Metric]:
        cloud = self._pipeline.escalator
        calls, failed, rows, sent_bytes = cloud.calls, cloud.failed_calls, cloud.sent_rows, cloud.sent_bytes
        yield CounterMetricFamily("penstock_agent_escalation_calls", "Calls to the cloud, audits included.", calls)
        yield CounterMetricFamily("penstock_agent_escalation_failed_calls", "Calls to the cloud that failed.", failed)
        yield CounterMetricFamily("penstock_agent_escalation_rows", "Rows sent up, audits included.", rows)
        yield CounterMetricFamily("penstock_agent_escalation_sent_bytes", "Bytes of requests sent up.", sent_bytes)
        yield GaugeMetricFamily(
            "penstock_agent_cloud_reachable", "0 while a circuit to the cloud is open.", float(cloud.is_reachable)
        )
