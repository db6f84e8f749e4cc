"""What ``/metrics`` shows, collected when it is asked for: the request path only adds to plain numbers.

Owns names and labels. Names follow Prometheus' conventions: base units, ``_total`` for counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.texts import TextPlane
from penstock.process.telemetry import dropped_lines
from penstock.rest.status import STATUS
from penstock.wire.outcomes import COUNTERS, MEANINGS, OUTCOMES

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics(Collector):
    """Reads the data path's numbers."""

    def __init__(self, dataplane: DataPlane, texts: TextPlane, unclean_ends: Callable[[], int] = lambda: 0) -> None:
        self._dataplane, self._texts, self._unclean_ends = dataplane, texts, unclean_ends
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Write all metrics in the text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all families; called by the registry."""
        yield from self._requests()
        yield from self._models()
        yield from self._cloud()
        yield from self._generations()
        yield CounterMetricFamily("penstock_agent_dropped_log_lines", "Log lines that nobody read.", dropped_lines())

        yield CounterMetricFamily(
            "penstock_agent_unclean_ends",
            "Agents that ended without a last flush (power cut, kill): at most outbox.flush_s of counts lack for each.",
            self._unclean_ends(),
        )

    def _requests(self) -> Iterator[Metric]:
        duration_s = self._dataplane.in_flight.duration_s
        yield HistogramMetricFamily(
            "penstock_agent_request_duration_seconds",
            "Inference requests by duration, refused ones included.",
            buckets=duration_s.cumulative(),
            sum_value=duration_s.total,
        )
        responses = CounterMetricFamily(
            "penstock_agent_responses", "Answers to inference requests by HTTP status.", labels=["status"]
        )
        by_status: Counter[int] = Counter()
        for code, count in self._dataplane.in_flight.answers.items():
            by_status[STATUS.get(code, 200)] += count
        for status, count in sorted(by_status.items()):
            responses.add_metric([str(status)], count)
        yield responses
        load = self._dataplane.load
        yield GaugeMetricFamily("penstock_agent_rows_in_flight", "Admitted rows not yet answered.", load.rows)
        yield GaugeMetricFamily(
            "penstock_agent_rows_in_flight_limit",
            "Most rows that may be in flight: the setting limits.max_queue_rows.",
            self._dataplane.limits.max_queue_rows,
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
        mode = GaugeMetricFamily(
            "penstock_agent_cascade_mode",
            "1 for the cascade's mode that is in force, 0 for the others.",
            labels=[*labels, "mode"],
        )
        failures = CounterMetricFamily(
            "penstock_agent_engine_failures", "Requests that the engine failed.", labels=labels
        )
        unavailable = CounterMetricFamily(
            "penstock_agent_audits_unavailable",
            "Drawn for the audit and not audited, since nothing here can grade them.",
            labels=labels,
        )
        for hosted in self._dataplane.hosting.hosted():
            names = [hosted.plan.model, hosted.plan.version]
            counts = hosted.counts
            unavailable.add_metric(names, hosted.grader.unavailable)
            for outcome in OUTCOMES:
                rows.add_metric([*names, outcome], getattr(counts, outcome))
            for name, family in others.items():
                family.add_metric(names, getattr(counts, name))
            failures.add_metric(names, hosted.failures)
            for each in CascadeMode:
                mode.add_metric([*names, each.value], float(each is hosted.mode))
        yield from (rows, *others.values(), failures, mode, unavailable)

    def _generations(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        prompts = CounterMetricFamily(
            "penstock_agent_prompt_tokens", "Tokens of prompts whose answer has begun.", labels=labels
        )
        cached = CounterMetricFamily(
            "penstock_agent_prompt_tokens_cached",
            "Tokens of prompts that were not computed again: a request before had the same beginning.",
            labels=labels,
        )
        answers = CounterMetricFamily("penstock_agent_completion_tokens", "Tokens of answers.", labels=labels)
        ends = CounterMetricFamily(
            "penstock_agent_generation_failures", "Engine processes that died or hung.", labels=labels
        )
        down = GaugeMetricFamily(
            "penstock_agent_generation_down",
            "1 while a model's engine cannot answer, and is tried again.",
            labels=labels,
        )
        waiting = GaugeMetricFamily(
            "penstock_agent_generations_waiting", "Generations that wait for a slot.", labels=labels
        )
        running = GaugeMetricFamily(
            "penstock_agent_generations_running", "Generations that have a slot.", labels=labels
        )
        for hosted in self._dataplane.hosting.hosted():
            if not hosted.is_text:
                continue
            names = [hosted.plan.model, hosted.plan.version]
            counts = hosted.texts.generator.counts()
            prompts.add_metric(names, counts.totals.prompt_tokens)
            cached.add_metric(names, counts.totals.cached_tokens)
            answers.add_metric(names, counts.totals.completion_tokens)
            ends.add_metric(names, counts.crashes + counts.hangs)
            down.add_metric(names, float(not hosted.texts.generator.health().is_well))
            waiting.add_metric(names, counts.load.waiting)
            running.add_metric(names, counts.load.running)
        yield from (prompts, cached, answers, ends, down, waiting, running)
        cloud = self._texts.cloud
        yield CounterMetricFamily(
            "penstock_agent_text_escalations", "Texts that the cloud was asked for, audits included.", cloud.calls
        )
        yield CounterMetricFamily(
            "penstock_agent_text_escalations_failed",
            "Texts that the cloud was asked for and did not begin.",
            cloud.failed_calls,
        )
        yield CounterMetricFamily(
            "penstock_agent_text_drafts_saved",
            "Answers of the cloud's for which nothing was drafted: the prompt alone decided.",
            self._texts.saved_drafts,
        )
        yield CounterMetricFamily(
            "penstock_agent_text_draft_tokens_lost",
            "Tokens that were drafted for answers which were escalated then.",
            self._texts.lost_tokens,
        )

    def _cloud(self) -> Iterator[Metric]:
        cloud = self._dataplane.escalator
        calls, failed, rows, sent_bytes = cloud.calls, cloud.failed_calls, cloud.sent_rows, cloud.sent_bytes
        yield CounterMetricFamily("penstock_agent_escalation_calls", "Calls to the cloud, audits included.", calls)
        yield CounterMetricFamily("penstock_agent_escalation_failed_calls", "Calls to the cloud that failed.", failed)
        yield CounterMetricFamily("penstock_agent_escalation_rows", "Rows sent up, audits included.", rows)
        yield CounterMetricFamily("penstock_agent_escalation_sent_bytes", "Bytes of requests sent up.", sent_bytes)
        yield GaugeMetricFamily(
            "penstock_agent_cloud_reachable", "0 while a circuit to the cloud is open.", float(cloud.is_reachable)
        )
