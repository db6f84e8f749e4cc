"""The part of ``/metrics`` that says what came from caches of responses. Nothing where no model has one."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cloud_core.serving.dataplane import DataPlane


def cached(plane: DataPlane) -> Iterable[Metric]:
    """Yield how often answers were given again, and the memory that they take."""
    labels = ["model", "variant"]
    requests = CounterMetricFamily(
        "penstock_response_cache_requests",
        "Requests to models with a cache: hit, shared with one that was under way, or miss.",
        labels=[*labels, "outcome"],
    )
    ended = CounterMetricFamily(
        "penstock_response_cache_evictions",
        "Cached answers that made room for others, or were too old.",
        labels=labels,
    )
    for values, one in tuple(plane.measures.caches.items()):
        for outcome, count in (("hit", one.hits), ("shared", one.shared), ("miss", one.misses)):
            requests.add_metric([*values, outcome], count)
        ended.add_metric(values, one.ended)
    held = GaugeMetricFamily("penstock_response_cache_bytes", "Memory of cached answers.", labels=labels)
    for served in plane.served():
        if served.cache is not None:
            held.add_metric([served.variant.spec.model, served.variant.digest], served.cache.size_bytes)
    yield from (requests, ended, held)
