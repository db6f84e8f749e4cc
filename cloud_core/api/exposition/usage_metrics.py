"""The part of ``/metrics`` that says what tenants used. Labels are bounded by a setting of ``[usage]``."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric

from cloud_core.tenants.usage import Usage


def used(usage: Usage) -> Iterable[Metric]:
    """Yield what tenants used of models since the core began; ``penstock core usage`` says it by day."""
    labels = ["tenant", "model"]
    families = {
        "requests": CounterMetricFamily(
            "penstock_usage_requests", "Requests of tenants that were admitted.", labels=labels
        ),
        "failed": CounterMetricFamily(
            "penstock_usage_failed", "Requests of tenants that were admitted and not answered.", labels=labels
        ),
        "rows": CounterMetricFamily("penstock_usage_rows", "Rows that tenants sent.", labels=labels),
        "bytes": CounterMetricFamily(
            "penstock_usage_bytes", "Bytes of bodies that tenants sent, or of their tensors.", labels=labels
        ),
        "tokens": CounterMetricFamily(
            "penstock_usage_tokens", "Tokens of prompts and answers of tenants.", labels=labels
        ),
        "device_s": CounterMetricFamily(
            "penstock_usage_device_seconds",
            "Seconds of engines that tenants used, shared among the rows of a batch.",
            labels=labels,
        ),
    }
    for pair, one in tuple(usage.since_start.items()):
        for name, family in families.items():
            family.add_metric(pair, getattr(one, name))
    yield from families.values()
