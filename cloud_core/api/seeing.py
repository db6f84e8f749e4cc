"""Documents of what was counted, for ``penstock core top``, ``slo`` and ``explain``, and for the page for browsers.

Counts nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from cloud_core.observing.observing import Observing
from cloud_core.serving.counters import Measures
from cloud_core.serving.dataplane import DataPlane
from cloud_core.serving.router import Served
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action
from penstock.policy.batch_closing import MEANINGS
from penstock.process.histogram import Histogram

TRAFFIC, SLO, EXPLAIN = "/v2/_penstock/traffic", "/v2/_penstock/slo", "/v2/_penstock/explain"
DRIFT = "/v2/_penstock/drift"


def _says(summary: str) -> Operation:
    return Operation(summary=summary, group="server", answers={JSON: dict[str, Any]})


class Seeing:
    """Answers these requests from one data plane and who observes its requests."""

    def __init__(self, plane: DataPlane, observing: Observing) -> None:
        self._plane, self._observing = plane, observing

    def routes(self) -> list[Route]:
        """List the rows. They name all models and tenants, so who may read metrics may read them."""
        rows = (
            (TRAFFIC, self.traffic, "Say what each version has answered, and what waits and runs now"),
            (SLO, self.slo, "Say how models do by what they promise"),
            (DRIFT, self.drift, "Say whether rows are distributed as they were"),
            (EXPLAIN, self.explain, "Say why requests were refused and why batches were closed"),
        )
        return [Route("GET", path, _told(tell), Action.SCRAPE, says=_says(words)) for path, tell, words in rows]

    def traffic(self) -> dict[str, Any]:
        """Write what each version has answered, and what waits and runs now."""
        plane = self._plane
        queues = {served.variant.digest: served for served in plane.served()}
        digests = {(version.model, version.tag): served.variant.digest for version, served in plane.served_versions()}
        models = []
        for state in plane.index():
            served = queues.get(digests.get((state.model, state.version), ""))
            models.append(
                {
                    "model": state.model,
                    "version": state.version,
                    "state": state.state,
                    "reason": state.reason,
                    "is_default": state.is_default,
                    **_answered(plane.measures, state.model, state.version),
                    **_now(served),
                }
            )
        return {
            "ready": plane.is_ready,
            "live": plane.is_live,
            "inflight": plane.measures.inflight,
            "inflight_bytes": plane.measures.inflight_bytes,
            "loop_lag_s": plane.measures.loop_lag_s,
            "refused": dict(plane.measures.refused),
            "models": models,
        }

    def by_tenant(self) -> list[dict[str, Any]] | None:
        """Write who asked for what, the busiest first; None where that is not counted."""
        traffic = self._observing.traffic
        if traffic is None:
            return None
        found = [
            {
                "model": model,
                "version": version,
                "tenant": tenant,
                "arm": arm,
                "requests": sum(series.requests.values()),
                "failed": sum(series.requests.values()) - series.requests.get("ok", 0),
                "rows": series.rows,
                "tokens": series.tokens,
                "request_bytes": series.request_bytes,
            }
            for (model, version, tenant, arm), series in traffic.series.items()
        ]
        return sorted(found, key=lambda one: -one["requests"])

    def slo(self) -> dict[str, Any]:
        """Write how models do by what they promise."""
        slos = self._observing.slos
        return {"is_on": slos is not None, "models": [] if slos is None else slos.documents(perf_counter())}

    def drift(self) -> dict[str, Any]:
        """Write whether rows are distributed as they were."""
        drift = self._observing.drift
        if drift is None:
            return {"is_on": False, "versions": [], "events": []}
        return {"is_on": True, "versions": drift.documents(), "events": list(reversed(tuple(drift.events)))}

    def explain(self) -> dict[str, Any]:
        """Write why requests were refused and why batches were closed."""
        refusals, batches = self._observing.refusals, self._observing.batches
        return {
            "batches": None if batches is None else batches.document(),
            "meanings": dict(MEANINGS),
            **({"refused": None, "last": None} if refusals is None else refusals.document()),
        }


def quantile(histogram: Histogram, share: float) -> float | None:
    """Estimate a quantile from counts by bound, linearly within a bound; None where nothing was observed."""
    total = sum(histogram.counts)
    if not total:
        return None
    wanted, below, low = share * total, 0, 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        if count and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return low  # it is above the last bound: nobody knows how far


def _told(tell: Any) -> Any:
    async def answer(request: Request) -> Reply:
        return json_reply(tell())

    return answer


def _answered(measures: Measures, model: str, version: str) -> Mapping[str, Any]:
    route = measures.routes.get((model, version))
    if route is None:
        return {"requests": 0, "failed": 0, "rows": 0, "p50_s": None, "p99_s": None}
    requests = sum(route.requests.values())
    return {
        "requests": requests,
        "failed": requests - route.requests.get("ok", 0),
        "rows": route.rows,
        "p50_s": quantile(route.duration_s, 0.5),
        "p99_s": quantile(route.duration_s, 0.99),
    }


def _now(served: Served | None) -> Mapping[str, Any]:
    queues = () if served is None else served.queues
    return {
        "waiting_rows": sum(queue.queue_rows for queue in queues),
        "running_rows": sum(queue.running_rows for queue in queues),
        "replicas": len(queues),
    }
