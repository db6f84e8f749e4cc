"""What the core says of a version when it is asked what it has answered. Reads counters, changes none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from cloud_core.registry.registry import Registry
from cloud_core.serving.controller import Controller
from cloud_core.serving.counters import Measures
from cloud_core.serving.router import Served
from cloud_core.serving.served_text import ServedText
from cloud_core.tenants.sight import SeenRegistry
from penstock.artifact.manifests import Variant
from penstock.errors import PenstockError
from penstock.wire.inference import NOTHING, BatchStatistics, Ended, ModelState, ModelStatistics


def statistics_of_all(
    states: Sequence[ModelState],
    controller: Controller,
    registry: Registry | SeenRegistry,
    measures: Measures,
    *,
    now: float,
) -> list[ModelStatistics]:
    """Say what each of these versions has answered, in their order."""
    told = []
    for state in states:
        variant = served = None
        with contextlib.suppress(PenstockError):  # for devices only, or damaged
            variant = controller.variant_of(registry.resolve(state.model, state.version).digest)
            served = controller.router.served.get(variant.digest)
        told.append(statistics_of(state.model, state.version, variant, served, measures, now=now))
    return told


def statistics_of(
    model: str,
    version: str,
    variant: Variant | None,
    served: Served | ServedText | None,
    measures: Measures,
    *,
    now: float,
) -> ModelStatistics:
    """Say what a version has answered.

    Args:
        variant: what runs it; None for a version that cannot be served here.
        served: the same, where it is in memory.
        now: on the event loop's clock.
    """
    batches = None if variant is None else measures.batches.get((model, variant.digest))
    routed = measures.routes.get((model, version))
    succeeded = failed = NOTHING
    if routed is not None:
        answered = routed.requests.get("ok", 0)
        succeeded = Ended(requests=answered, seconds=routed.succeeded_s)
        failed = Ended(
            requests=sum(routed.requests.values()) - answered, seconds=routed.duration_s.total - routed.succeeded_s
        )
    by_size: tuple[BatchStatistics, ...] = ()
    queued, computed, runs = NOTHING, NOTHING, 0
    if batches is not None:
        queued = Ended(requests=sum(batches.queue_s.counts), seconds=batches.queue_s.total)
        computed = Ended(requests=batches.requests, seconds=batches.requests_s)
        runs, by_size = sum(batches.rows.counts), _by_size(batches.by_rows)
    cached = uncached = NOTHING
    caches = None if variant is None else measures.caches.get((model, variant.digest))
    if caches is not None:
        cached = Ended(requests=caches.hits + caches.shared, seconds=0.0)
        uncached = Ended(requests=caches.misses, seconds=0.0)
    return ModelStatistics(
        model=model,
        version=version,
        rows=0 if routed is None else routed.rows,
        succeeded=succeeded,
        failed=failed,
        queued=queued,
        computed=computed,
        cached=cached,
        uncached=uncached,
        runs=runs,
        batches=by_size,
        last_at_ms=_wall_ms(served.last_used_at, now) if served is not None and succeeded.requests else 0,
    )


def _by_size(by_rows: Mapping[int, tuple[int, float]]) -> tuple[BatchStatistics, ...]:
    return tuple(BatchStatistics(rows=rows, runs=runs, seconds=s) for rows, (runs, s) in sorted(by_rows.items()))


def _wall_ms(at: float, now: float) -> int:
    return round((time.time() - (now - at)) * 1000)
