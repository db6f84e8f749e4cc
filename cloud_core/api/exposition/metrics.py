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

from cloud_core.api.exposition.arm_metrics import arms
from cloud_core.api.exposition.cache_metrics import cached
from cloud_core.api.exposition.observed_metrics import observed
from cloud_core.api.exposition.usage_metrics import used
from cloud_core.fleet.service import FleetService
from cloud_core.observing.observing import Observing
from cloud_core.serving.dataplane import DataPlane
from cloud_core.serving.texts import TextPlane
from cloud_core.tenants.usage import Usage
from cloud_core.traffic.service import TrafficService
from penstock.process.histogram import Histogram
from penstock.process.telemetry import dropped_lines

_OF_ALL_LIVES = frozenset({"crashes", "hangs"})


class Metrics(Collector):
    """Everything there is to scrape of one core."""

    def __init__(
        self,
        plane: DataPlane,
        texts: TextPlane,
        fleet: FleetService,
        traffic: TrafficService,
        observing: Observing,
        version: str,
        *,
        usage: Usage | None = None,
    ) -> None:
        """``usage``: of tenants; None where there are none."""
        self._plane, self._texts, self._fleet, self._version = plane, texts, fleet, version
        self._traffic, self._observing = traffic, observing
        self._usage = usage
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
        yield from cached(self._plane)
        yield from self._gauges()
        yield from self._workers()
        yield from self._generations()
        yield from self._promises()
        yield from self._rollouts()
        yield from arms(self._plane.controller.lanes, self._traffic)
        yield from observed(self._plane, self._observing)
        if self._usage is not None:
            yield from used(self._usage)

    def _requests(self) -> Iterable[Metric]:
        measures = self._plane.measures
        requests = CounterMetricFamily(
            "penstock_requests", "Finished inference requests by outcome.", labels=["model", "version", "code"]
        )
        rows = CounterMetricFamily("penstock_rows", "Rows that were answered.", labels=["model", "version"])
        duration = HistogramMetricFamily(
            "penstock_request_duration_seconds",
            "Time of a request from admission to answer.",
            labels=["model", "version"],
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
            (HistogramMetricFamily("penstock_batch_rows", "Rows that one batch had.", labels=labels), "rows"),
            (
                HistogramMetricFamily(
                    "penstock_batch_duration_seconds", "Time that the engine took for a batch.", labels=labels
                ),
                "run_s",
            ),
            (
                HistogramMetricFamily(
                    "penstock_queue_duration_seconds", "Time that a request waited to run.", labels=labels
                ),
                "queue_s",
            ),
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
        replicas = GaugeMetricFamily("penstock_replicas", "Replicas that are loaded.", labels=["model", "variant"])
        for served in plane.served():
            labels = [served.variant.spec.model, served.variant.digest]
            queued.add_metric(labels, sum(q.queue_rows for q in served.queues))
            running.add_metric(labels, sum(q.running_rows for q in served.queues))
            replicas.add_metric(labels, len(served.queues))
        yield from (queued, running, replicas)
        inflight, lag_s = plane.measures.inflight, plane.measures.loop_lag_s
        yield GaugeMetricFamily(
            "penstock_inflight_requests", "Requests that are admitted and not yet answered.", inflight
        )
        held = plane.measures.inflight_bytes
        yield GaugeMetricFamily(
            "penstock_inflight_bytes", "Bytes of requests that are not answered yet, as admission counts them.", held
        )
        yield GaugeMetricFamily(
            "penstock_ready", "1 when requests are admitted, 0 while loading or draining.", float(plane.is_ready)
        )
        yield GaugeMetricFamily("penstock_live", "1 unless an engine hangs.", float(plane.is_live))
        yield GaugeMetricFamily(
            "penstock_event_loop_lag_seconds", "How late the event loop came to its last regular look.", lag_s
        )
        yield CounterMetricFamily("penstock_dropped_log_lines", "Log lines that nobody read.", dropped_lines())

    def _workers(self) -> Iterable[Metric]:
        labels = ["model", "variant"]
        counters = {
            "starts": CounterMetricFamily("penstock_worker_starts", "Worker processes that were ready.", labels=labels),
            "crashes": CounterMetricFamily(
                "penstock_worker_crashes", "Ends of worker processes that nobody asked for.", labels=labels
            ),
            "hangs": CounterMetricFamily(
                "penstock_worker_hangs",
                "Worker processes that were killed because a batch ran for too long.",
                labels=labels,
            ),
            "retried": CounterMetricFamily(
                "penstock_worker_retried_batches",
                "Batches that a worker process left unanswered and that were run again.",
                labels=labels,
            ),
        }
        down = GaugeMetricFamily(
            "penstock_replicas_down", "Replicas whose worker process cannot answer now.", labels=labels
        )
        for served in self._plane.served():
            workers, values = served.workers(), [served.variant.spec.model, served.variant.digest]
            for name, family in counters.items() if workers else ():
                family.add_metric(values, sum(getattr(worker, name) for worker in workers))
            down.add_metric(values, sum(worker.pid is None for worker in workers))
        yield from (*counters.values(), down)

    def _generations(self) -> Iterable[Metric]:
        times = {
            "queue_s": HistogramMetricFamily(
                "penstock_generation_queue_seconds",
                "Time that a generation waited for a slot.",
                labels=["model", "variant"],
            ),
            "first_token_s": HistogramMetricFamily(
                "penstock_generation_first_token_seconds",
                "Time of a generation from arrival to its first token.",
                labels=["model", "variant"],
            ),
            "between_tokens_s": HistogramMetricFamily(
                "penstock_generation_between_tokens_seconds",
                "Time of a generation from one token to the next.",
                labels=["model", "variant"],
            ),
        }
        for (model, variant), measures in tuple(self._plane.measures.generations.items()):
            for name, family in times.items():
                histogram: Histogram = getattr(measures, name)
                family.add_metric([model, variant], histogram.cumulative(), sum_value=histogram.total)
        counters, gauges = _generation_counters(), _generation_gauges()
        down = GaugeMetricFamily(
            "penstock_generation_down",
            "1 while a model's engine cannot answer, and is tried again.",
            labels=["model", "variant"],
        )
        for served in self._plane.served_texts():
            counts = served.model.generator.counts()
            at = [served.variant.spec.model, served.variant.digest]
            down.add_metric(at, float(bool(served.problem)))
            for name, counter in counters.items():
                counter.add_metric(at, getattr(counts if name in _OF_ALL_LIVES else counts.totals, name))
            for name, gauge in gauges.items():
                gauge.add_metric(at, getattr(counts.load, name))
        tokens = CounterMetricFamily(
            "penstock_tenant_tokens", "Tokens of prompts and answers that were begun.", labels=["tenant"]
        )
        for tenant, spent in tuple(self._texts.accounts.tokens.items()):
            tokens.add_metric([tenant], spent)
        yield from (*times.values(), *counters.values(), *gauges.values(), down, tokens)

    def _promises(self) -> Iterable[Metric]:
        labels = ["model", "artifact", "certificate"]
        evidence = GaugeMetricFamily(
            "penstock_fleet_evidence", "Evidence of all devices against the promise; 1 is an alarm.", labels=labels
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

    def _rollouts(self) -> Iterable[Metric]:
        devices = GaugeMetricFamily(
            "penstock_fleet_devices",
            "Devices by what they run and how far they are with it; one that is silent counts as last reported.",
            labels=["model", "version", "phase"],
        )
        for (model, version, phase), count in self._fleet.views.running().items():
            devices.add_metric([model, version, phase], count)
        rollouts = GaugeMetricFamily(
            "penstock_fleet_rollouts", "Rollouts and plans that are kept, by their state.", labels=["model", "state"]
        )
        states = self._fleet.views.states()
        for (model, state), count in states.items():
            rollouts.add_metric([model, state], count)
        stops = CounterMetricFamily(
            "penstock_fleet_rollout_stops", "Rollouts that a gate stopped since the core started.", labels=["model"]
        )
        for model in dict.fromkeys(model for model, _ in states):  # 0 before the first, from which it can increase
            stops.add_metric([model], self._fleet.stops[model])
        last_stop = GaugeMetricFamily(
            "penstock_fleet_last_stop_timestamp_seconds",
            "When a gate last stopped a rollout that is kept: seconds since 1970. Nothing before the first.",
            labels=["model"],
        )
        for model, at in self._fleet.views.stopped_at().items():
            last_stop.add_metric([model], at)
        yield from (devices, rollouts, stops, last_stop)
        yield GaugeMetricFamily(
            "penstock_fleet_known_devices", "Devices that ever reported and are kept.", len(self._fleet.views)
        )
        yield GaugeMetricFamily(
            "penstock_fleet_silent_devices",
            "Devices that report no more: their last report is old.",
            self._fleet.views.silent(),
        )


def _generation_counters() -> dict[str, CounterMetricFamily]:
    """Make the families of what generations have done, by the names of the counts."""
    return {
        "prompt_tokens": CounterMetricFamily(
            "penstock_prompt_tokens", "Tokens of prompts whose answer has begun.", labels=["model", "variant"]
        ),
        "cached_tokens": CounterMetricFamily(
            "penstock_prompt_tokens_cached",
            "Tokens of prompts that were not computed again: a request before had the same beginning.",
            labels=["model", "variant"],
        ),
        "completion_tokens": CounterMetricFamily(
            "penstock_completion_tokens", "Tokens of answers.", labels=["model", "variant"]
        ),
        "ended": CounterMetricFamily(
            "penstock_generations", "Generations that have their whole answer.", labels=["model", "variant"]
        ),
        "cut_off": CounterMetricFamily(
            "penstock_generations_cut_off",
            "Generations that were given up, or whose deadline passed.",
            labels=["model", "variant"],
        ),
        "crashes": CounterMetricFamily(
            "penstock_generation_crashes",
            "Ends of an engine's process that nobody asked for.",
            labels=["model", "variant"],
        ),
        "hangs": CounterMetricFamily(
            "penstock_generation_hangs",
            "Engine processes that were killed because they did not move.",
            labels=["model", "variant"],
        ),
    }


def _generation_gauges() -> dict[str, GaugeMetricFamily]:
    """Make the families of what generations there are now, by the names of the counts."""
    return {
        "waiting": GaugeMetricFamily(
            "penstock_generations_waiting", "Generations that wait for a slot.", labels=["model", "variant"]
        ),
        "running": GaugeMetricFamily(
            "penstock_generations_running", "Generations that have a slot.", labels=["model", "variant"]
        ),
        "running_kv_bytes": GaugeMetricFamily(
            "penstock_kv_bytes",
            "Memory of keys and values that running generations may take.",
            labels=["model", "variant"],
        ),
        "max_kv_bytes": GaugeMetricFamily(
            "penstock_kv_bytes_limit",
            "Most memory of keys and values that generations may take together.",
            labels=["model", "variant"],
        ),
    }
