"""Splits and shadows in ``/metrics``. Counts nothing itself; see ``cloud_core.serving.lanes``."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cloud_core.serving.lanes import Lanes
from cloud_core.serving.shadowing import ShadowCounts
from cloud_core.traffic.service import TrafficService


def arms(lanes: Lanes, service: TrafficService) -> Iterable[Metric]:
    """Yield the families. Counts of an arm begin again at nothing with each step of its split, and end with it."""
    labels = ["model", "arm"]
    requests = CounterMetricFamily(
        "penstock_arm_requests", "Finished requests of an arm of a split by outcome.", labels=[*labels, "code"]
    )
    rows = CounterMetricFamily("penstock_arm_rows", "Rows that an arm of a split answered.", labels=labels)
    duration = HistogramMetricFamily(
        "penstock_arm_request_duration_seconds", "Time of an arm's request from admission to answer.", labels=labels
    )
    for (model, arm), counts in tuple(lanes.arms.items()):
        for code, count in tuple(counts.requests.items()):
            requests.add_metric([model, arm, code], count)
        rows.add_metric([model, arm], counts.rows)
        duration.add_metric([model, arm], counts.duration_s.cumulative(), sum_value=counts.duration_s.total)
    percent = GaugeMetricFamily(
        "penstock_arm_percent", "Share of the requests that name no version which an arm gets.", labels=labels
    )
    for model, split in service.splits().items():
        for one in split.arms:
            percent.add_metric([model, one.name], one.percent)
    shadowed = CounterMetricFamily(
        "penstock_shadow_rows",
        "Rows that were copied to a shadow, by the arm that answered the caller and by how the shadow did.",
        labels=["model", "shadow", "arm", "outcome"],
    )
    for model, shadow in lanes.shadows.items():
        for arm, seen in tuple(shadow.counts.items()):
            for outcome in ShadowCounts.__slots__:
                shadowed.add_metric([model, shadow.shadow.name, arm, outcome], getattr(seen, outcome))
    ends = CounterMetricFamily(
        "penstock_split_ends", "Splits that are over since the core started.", labels=["model", "outcome"]
    )
    for (model, outcome), count in service.ends.items():
        ends.add_metric([model, outcome], count)
    yield from (requests, rows, duration, percent, shadowed, ends)
