"""The document of ``GET /status``: what is true of this agent now, for people and scripts. Reads, changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_agent.reporting.delivery import Delivery
from edge_agent.reporting.heartbeat import Device, Heartbeats
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.hosting import Hosted
from edge_agent.settings import AgentSettings
from edge_agent.updates.reported import ReportedModel
from edge_agent.updates.updater import Updater


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a status is read from."""

    settings: AgentSettings
    device: Device
    updater: Updater
    heartbeats: Heartbeats
    delivery: Delivery
    dataplane: DataPlane


def status_document(parts: Parts, *, tcp_address: str) -> dict[str, Any]:
    """Plain values only: it becomes JSON. Enum names are those of ``fleet.proto``."""
    device, settings, heartbeats, delivery = parts.device, parts.settings, parts.heartbeats, parts.delivery
    escalator = parts.dataplane.escalator
    return {
        "device_id": device.device_id,
        "instance": delivery.instance,
        "agent_version": device.agent_version,
        "target": device.target,
        "labels": device.labels,
        "data_dir": settings.data_dir,
        "socket": settings.socket,
        "tcp": tcp_address,
        "cloud": {
            "core": settings.core,
            "registry": settings.registry,
            "is_reachable": heartbeats.is_reachable,
            "error": heartbeats.error,
        },
        "subscriptions": device.subscriptions,
        "models": [_model(reported) for reported in parts.updater.reported()],
        "why_no_models": "" if parts.updater.reported() else _why_no_models(parts),
        "outbox": {
            "records": delivery.queued,
            "dropped": delivery.dropped,
            "unclean_ends": delivery.ends.unclean,
            "max_lost_s": delivery.ends.max_lost_s,
            "error": delivery.error,
        },
        "escalation": {
            "is_reachable": escalator.is_reachable,
            "calls": escalator.calls,
            "failed_calls": escalator.failed_calls,
            "sent_rows": escalator.sent_rows,
            "sent_bytes": escalator.sent_bytes,
        },
    }


def _why_no_models(parts: Parts) -> str:
    """Say what an agent without a model waits for, and who can do something about it."""
    heartbeats, settings = parts.heartbeats, parts.settings
    if not heartbeats.is_reachable:
        why = heartbeats.error or "it has not answered yet"
        return f"the core was never heard by this device, so it knows of no model to run: {settings.core}: {why}"
    wanted = (
        "" if "*" in settings.subscriptions else f" of {', '.join(settings.subscriptions) or 'none (subscriptions)'}"
    )
    device = parts.device
    return (
        f"the core has assigned no model{wanted} to this device (target {device.target}, rung {device.rung}); an "
        "operator does by 'penstock fleet apply MODEL:VERSION'"
    )


def _model(reported: ReportedModel) -> dict[str, Any]:
    active, previous, desired, hosted = reported.active, reported.previous, reported.desired, reported.hosted
    certificate = hosted.certificate if hosted else None
    counts = hosted.counts if hosted else None
    return {
        "model": reported.model,
        "version": active.release.version if active else "",
        "artifact": active.release.artifact_digest if active else "",
        "variant": active.variant_digest if active else "",
        "previous": previous.release.version if previous else "",
        "desired": desired.version if desired else "",
        "desired_artifact": desired.artifact_digest if desired else "",
        "phase": reported.phase.upper(),
        "error": reported.error,
        "failed_artifact": reported.failed_digest,
        "retry_in_s": None if reported.retry_in_s is None else round(reported.retry_in_s, 1),
        "fetched_bytes": reported.transferred.done_bytes,
        "total_bytes": reported.transferred.total_bytes,
        "is_serving": hosted is not None,
        "mode": hosted.mode.name if hosted else "",
        "mode_why": hosted.mode_why if hosted else "",
        "certificate": active.certificate_digest if active else "",
        "threshold": certificate.threshold if certificate else None,
        "promise": certificate.promise() if certificate else "",
        "damaged": hosted.plan.damaged if hosted else "",
        "unwatched": hosted.grader.problem if hosted else "",
        "failures": hosted.failures if hosted else 0,
        "counts": counts.columns() if counts else {},
        "generation": _generation(hosted) if hosted and hosted.is_text else None,
    }


def _generation(hosted: Hosted) -> dict[str, Any]:
    generator = hosted.texts.generator
    counts, facts = generator.counts(), hosted.texts.facts
    return {
        "context_tokens": facts.context_tokens,
        "slots": facts.slots,
        "running": counts.load.running,
        "waiting": counts.load.waiting,
        "failures": counts.crashes + counts.hangs,
        "problem": generator.health().why,
    }
