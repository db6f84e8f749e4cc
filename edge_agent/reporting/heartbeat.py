"""Heartbeats: they say what is true of this device, and bring back what it should run.

Owns their rhythm: soon after a change, as often as the service asks, and with growing pauses while it is out of reach.
Decides nothing about models (``edge_agent.updates.updater``), and the device works without the cloud for as long as it
has to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.policy.model_state import Release
from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.settings import HeartbeatSettings
from edge_agent.updates.reported import ReportedModel
from penstock.artifact.blobs import check_digest
from penstock.artifact.manifests import check_model_name
from penstock.errors import ArtifactError, PenstockError
from penstock.policy.retry import Backoff
from penstock.process.telemetry import log
from penstock.rpc.pb import fleet_pb2

_log = logging.getLogger(__name__)
_JITTER = 0.1  # heartbeats of a fleet that was switched on at once drift apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Says who reports.

    Attributes:
        target: the compile target that the device can run.
        rung: the role whose variants it runs.
        run: names this process.
    """

    device_id: str
    agent_version: str
    labels: dict[str, str]
    target: str
    subscriptions: tuple[str, ...]
    rung: str = "edge"
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Connects heartbeats with the rest of the agent.

    Attributes:
        reported: tells what is true of every model.
        desire: takes what the service wants a model to run.
        judge: takes what the service says about a release: whether it distrusts it, and when an operator trusted it.
        remove: takes that the service wants a model to be dropped.
        queued: tells how many outcome records wait.
        reached: is called when the service answers again after it did not.
        instance: tells the name of the data directory; "" while it is not known.
        learn: takes whether the service counts by instance, and whether another agent has ours.
    """

    reported: Callable[[], Sequence[ReportedModel]]
    desire: Callable[[str, Release], None]
    judge: Callable[[str, Release, bool, float], None]
    remove: Callable[[str], None]
    queued: Callable[[], int]
    reached: Callable[[], None]
    instance: Callable[[], str]
    learn: Callable[[bool, bool], None]


class Heartbeats:
    """Sends what is reported up and takes what is desired down."""

    def __init__(
        self,
        link: FleetLink,
        device: Device,
        local: Local,
        settings: HeartbeatSettings,
        *,
        random: Callable[[], float],
    ) -> None:
        self._link, self._device, self._local, self._settings, self._random = link, device, local, settings, random
        self._backoff = Backoff(base_s=settings.interval_s, max_s=max(settings.max_s, settings.interval_s))
        self._changed = asyncio.Event()
        self._failures = 0
        self.is_reachable = False
        self.error = ""

    def changed(self) -> None:
        """Ask for a heartbeat soon, because something changed; any number of calls before it make one heartbeat."""
        self._changed.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            self._changed.clear()
            delay_s = await self._beat()
            await asyncio.sleep(min(self._settings.min_s, delay_s))
            if self.is_reachable:
                with contextlib.suppress(TimeoutError):
                    # not wait_for: that of Python 3.11 forgets a stop that comes while it wakes
                    async with asyncio.timeout(max(0.0, delay_s - self._settings.min_s)):
                        await self._changed.wait()
            else:  # changes do not make an unreachable service reachable
                await asyncio.sleep(max(0.0, delay_s - self._settings.min_s))

    async def _beat(self) -> float:
        """Send one heartbeat; return how long to wait before the next, in seconds."""
        local = self._local
        request = heartbeat_request(self._device, local.reported(), local.queued(), instance=local.instance())
        try:
            response = await self._link.heartbeat(request)
        except PenstockError as error:
            self._note_failure(error)
            return self._backoff.delay_s(self._failures - 1, self._random(), retry_after_s=error.retry_after_s)
        local.learn(response.counts_instances, response.must_renew_instance)
        if not self.is_reachable:
            log(_log, logging.INFO, "fleet service reached")
            local.reached()
        self.is_reachable, self.error, self._failures = True, "", 0
        for desired in response.models:
            self._take(desired)
        asked_s = response.next_heartbeat_s or self._settings.interval_s
        asked_s = min(max(asked_s, self._settings.min_s), self._settings.max_s)
        return asked_s * (1 - _JITTER * self._random())

    def _take(self, desired: fleet_pb2.DesiredModel) -> None:
        try:
            if desired.is_removed:
                self._local.remove(check_model_name(desired.model))
                return
            release = Release(
                version=desired.version,
                artifact_digest=check_digest(desired.artifact_digest),
                certificate_digest=check_digest(desired.certificate_digest) if desired.certificate_digest else "",
            )
            self._local.desire(check_model_name(desired.model), release)
            trusted_at = desired.trusted_at if math.isfinite(desired.trusted_at) else 0.0
            self._local.judge(desired.model, release, desired.is_distrusted, trusted_at)
        except ArtifactError as error:
            log(_log, logging.WARNING, "desired model refused", model=desired.model[:128], error=error.message)

    def _note_failure(self, error: PenstockError) -> None:
        self._failures += 1
        level = logging.WARNING if self.is_reachable or self._failures == 1 else logging.DEBUG
        log(_log, level, "fleet service out of reach", code=error.code, error=error.message)
        self.is_reachable, self.error = False, error.message


def heartbeat_request(
    device: Device, models: Sequence[ReportedModel], queued: int, *, instance: str = ""
) -> fleet_pb2.HeartbeatRequest:
    """Build the message that says what is true of this device."""
    return fleet_pb2.HeartbeatRequest(
        device_id=device.device_id,
        agent_version=device.agent_version,
        labels=device.labels,
        target=device.target,
        subscriptions=device.subscriptions,
        models=[_model_message(model) for model in models],
        outbox_records=queued,
        rung=device.rung,
        instance=instance,
        run=device.run,
    )


def _model_message(reported: ReportedModel) -> fleet_pb2.ReportedModel:
    active, desired = reported.active, reported.desired
    certificate = reported.hosted.certificate if reported.hosted else None
    mode = reported.hosted.mode.name if reported.hosted else "CASCADE_MODE_UNSPECIFIED"
    return fleet_pb2.ReportedModel(
        model=reported.model,
        active_digest=active.release.artifact_digest if active else "",
        active_version=active.release.version if active else "",
        certificate_digest=active.certificate_digest if active else "",
        desired_digest=desired.artifact_digest if desired else "",
        phase=reported.phase.upper(),
        mode=mode,
        failed_digest=reported.failed_digest,
        error=reported.error,
        fetched_bytes=reported.transferred.done_bytes,
        total_bytes=reported.transferred.total_bytes,
        max_harm=certificate.max_harm if certificate else 0.0,
        desired_certificate_digest=desired.certificate_digest if desired else "",
    )
