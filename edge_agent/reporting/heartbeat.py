"""The device's side of the conversation with the fleet service: heartbeats, and delivering outcome records.

The device always dials (invariant 1). A heartbeat says what is and brings back what should be; outcome counts go
through the durable outbox, so that an outage costs nothing but time. Owns the rhythm of both; decides nothing about
models (``edge_agent.updates.updater``), and works without the cloud for as long as need be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from edge_agent.policy.model_state import Release
from edge_agent.reporting.outbox import Outbox, Record
from edge_agent.serving.counts import NOTHING, IntervalCounts, OutcomeCounts, Outcomes
from edge_agent.settings import HeartbeatSettings, OutboxSettings
from edge_agent.updates.reported import Report
from edge_agent.updates.store import in_thread
from penstock.artifact.blobs import check_digest
from penstock.artifact.manifests import check_model_name
from penstock.errors import ArtifactError, PenstockError, StorageError, Unavailable
from penstock.policy.retry import Backoff
from penstock.process.telemetry import log
from penstock.rpc import channels
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc
from penstock.rpc.status import error_from_rpc

_log = logging.getLogger(__name__)
_JITTER = 0.1  # heartbeats of a fleet that was switched on at once drift apart
_MAX_PENDING = 256  # intervals held in memory while the disk refuses them; beyond it they are summed per artifact
_SUMMED = ("requests", "kept", "escalated", "unreachable", "failed", "audited", "audit_harm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Who reports. ``target`` is the compile target that it can run."""

    device_id: str
    agent_version: str
    labels: dict[str, str]
    target: str
    subscriptions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What heartbeats speak of and to.

    Attributes:
        reports: what is true of every model. ``desire``: takes a wish for a model. ``queued``: outcome records waiting.
        reached: called when the service answers again after it did not.
    """

    reports: Callable[[], Sequence[Report]]
    desire: Callable[[str, Release], None]
    queued: Callable[[], int]
    reached: Callable[[], None]


class FleetLink:
    """The channel to the fleet service; its errors are ours."""

    def __init__(self, target: str, *, timeout_s: float, token: str = "") -> None:
        """
        Args:
            token: where the core has tenants.

        Raises:
            InvalidInput: ``target`` is not ``grpc://host:port``.
        """
        self._channel = channels.open_channel(target, aio=True)
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._timeout_s = timeout_s
        self._credential = channels.bearer(token)

    async def heartbeat(self, request: fleet_pb2.HeartbeatRequest) -> fleet_pb2.HeartbeatResponse:
        """
        Raises:
            PenstockError: out of reach, or refused.
        """
        try:
            response: fleet_pb2.HeartbeatResponse = await self._stub.Heartbeat(
                request, timeout=self._timeout_s, metadata=self._credential
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return response

    async def deliver(self, request: fleet_pb2.DeliverOutcomesRequest) -> int:
        """Deliver records; returns the highest sequence that is durable over there.

        Raises:
            PenstockError: out of reach, or refused.
        """
        try:
            response = await self._stub.DeliverOutcomes(request, timeout=self._timeout_s, metadata=self._credential)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return int(response.durable_sequence)

    async def close(self) -> None:
        await self._channel.close(grace=None)


class Heartbeats:
    """Reports up, takes wishes down. ``changed`` asks for a heartbeat soon; any number of them make one."""

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
        """Something changed that the service should hear of."""
        self._changed.set()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._changed.clear()
            delay_s = await self._beat()
            await asyncio.sleep(min(self._settings.min_s, delay_s))
            if self.is_reachable:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), max(0.0, delay_s - self._settings.min_s))
            else:  # changes do not make an unreachable service reachable
                await asyncio.sleep(max(0.0, delay_s - self._settings.min_s))

    async def _beat(self) -> float:
        """One heartbeat; returns how long to wait for the next."""
        request = heartbeat_request(self._device, self._local.reports(), self._local.queued())
        try:
            response = await self._link.heartbeat(request)
        except PenstockError as error:
            self._note_failure(error)
            return self._backoff.delay_s(self._failures - 1, self._random(), retry_after_s=error.retry_after_s)
        if not self.is_reachable:
            log(_log, logging.INFO, "fleet service reached")
            self._local.reached()
        self.is_reachable, self.error, self._failures = True, "", 0
        for wish in response.models:
            self._take(wish)
        asked_s = response.next_heartbeat_s or self._settings.interval_s
        asked_s = min(max(asked_s, self._settings.min_s), self._settings.max_s)
        return asked_s * (1 - _JITTER * self._random())

    def _take(self, wish: fleet_pb2.DesiredModel) -> None:
        try:
            release = Release(
                version=wish.version,
                artifact_digest=check_digest(wish.artifact_digest),
                certificate_digest=check_digest(wish.certificate_digest) if wish.certificate_digest else "",
            )
            self._local.desire(check_model_name(wish.model), release)
        except ArtifactError as error:
            log(_log, logging.WARNING, "desired model refused", model=wish.model[:128], error=error.message)

    def _note_failure(self, error: PenstockError) -> None:
        self._failures += 1
        level = logging.WARNING if self.is_reachable or self._failures == 1 else logging.DEBUG
        log(_log, level, "fleet service out of reach", code=error.code, error=error.message)
        self.is_reachable, self.error = False, error.message


class Delivery:
    """Moves outcome counts from memory into the outbox, and from there to the fleet service."""

    def __init__(
        self,
        outcomes: Outcomes,
        open_outbox: Callable[[], Outbox],
        link: FleetLink,
        device_id: str,
        settings: OutboxSettings,
        *,
        now: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """``open_outbox`` may raise StorageError, and is then tried again: a full disk must not stop the agent."""
        self._outcomes, self._open_outbox, self._link = outcomes, open_outbox, link
        self._device_id, self._settings, self._now, self._random = device_id, settings, now, random
        self._backoff = Backoff(base_s=settings.flush_s, max_s=max(settings.flush_s, 60.0))
        self._one_call = asyncio.Lock()  # the outbox takes one at a time
        self._outbox: Outbox | None = None
        self._pending: list[IntervalCounts] = []
        self._failures = 0
        self._retry_at = 0.0
        self._wake = asyncio.Event()
        self.error = ""

    @property
    def queued(self) -> int:
        """Records on disk, and intervals that wait for the disk."""
        return (self._outbox.depth if self._outbox else 0) + len(self._pending)

    @property
    def dropped(self) -> int:
        """Records given up since the start: too old, or no room."""
        return self._outbox.dropped if self._outbox else 0

    async def run(self) -> None:
        """Flush and deliver until cancelled. What an earlier life left behind goes first."""
        while True:
            await self.flush()
            if self._now() >= self._retry_at:
                await self._deliver_or_back_off()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.flush_s)

    def retry(self) -> None:
        """The service is back: do not wait for the back-off to end."""
        self._failures, self._retry_at = 0, 0.0
        self._wake.set()

    async def counted(self, model: str, artifact_digest: str) -> OutcomeCounts:
        """Everything counted for an artifact before; nothing when the disk does not say."""
        try:
            async with self._one_call:
                outbox = await self._opened()
                return await in_thread(outbox.totals, model, artifact_digest)
        except StorageError as error:
            log(_log, logging.WARNING, "totals unknown", model=model, error=error.message)
            return NOTHING

    async def flush(self) -> None:
        """Make the counts since the last flush durable; when the disk refuses they stay in memory, bounded."""
        self._pending = bounded([*self._pending, *self._outcomes.drain()], _MAX_PENDING)
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            async with self._one_call:
                outbox = await self._opened()
                await in_thread(outbox.append, pending)
        except StorageError as error:
            self._pending = [*pending, *self._pending]
            self._note(error)

    async def close(self) -> None:
        """The last flush. Call when nothing is counted any more."""
        await self.flush()
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None

    async def _deliver_or_back_off(self) -> None:
        try:
            await self._deliver()
        except PenstockError as error:
            self._failures += 1
            delay_s = self._backoff.delay_s(self._failures - 1, self._random(), retry_after_s=error.retry_after_s)
            self._retry_at = self._now() + delay_s
            self._note(error)
        else:
            self._failures, self.error = 0, ""

    async def _deliver(self) -> None:
        """Batch by batch until the outbox is empty.

        Raises:
            PenstockError: out of reach, refused, or the disk; what was not acknowledged stays.
        """
        while batch := await self._batch():
            durable = await self._link.deliver(delivery_request(self._device_id, batch))
            async with self._one_call:
                outbox = await self._opened()
                await in_thread(outbox.acknowledge, durable)
            if durable < batch[0].sequence:
                raise Unavailable(f"the fleet service keeps nothing: durable up to {durable} of {batch[0].sequence}")

    async def _batch(self) -> Sequence[Record]:
        async with self._one_call:
            outbox = await self._opened()
            return await in_thread(outbox.batch) if outbox.depth else ()

    async def _opened(self) -> Outbox:
        if self._outbox is None:
            self._outbox = await in_thread(self._open_outbox)
        return self._outbox

    def _note(self, error: PenstockError) -> None:
        if error.message != self.error:
            log(_log, logging.WARNING, "outcomes wait", code=error.code, queued=self.queued, error=error.message)
        self.error = error.message


def heartbeat_request(device: Device, reports: Sequence[Report], queued: int) -> fleet_pb2.HeartbeatRequest:
    """The message that says what is true of this device."""
    return fleet_pb2.HeartbeatRequest(
        device_id=device.device_id,
        agent_version=device.agent_version,
        labels=device.labels,
        target=device.target,
        subscriptions=device.subscriptions,
        models=[reported(report) for report in reports],
        outbox_records=queued,
    )


def reported(report: Report) -> fleet_pb2.ReportedModel:
    """One model in a heartbeat."""
    active, desired = report.active, report.desired
    mode = report.hosted.mode.name if report.hosted else "CASCADE_MODE_UNSPECIFIED"
    return fleet_pb2.ReportedModel(
        model=report.model,
        active_digest=active.release.artifact_digest if active else "",
        active_version=active.release.version if active else "",
        certificate_digest=active.certificate_digest if active else "",
        desired_digest=desired.artifact_digest if desired else "",
        phase=report.phase.upper(),
        mode=mode,
        failed_digest=report.failed_digest,
        error=report.error,
        fetched_bytes=report.transferred.done_bytes,
        total_bytes=report.transferred.total_bytes,
    )


def delivery_request(device_id: str, batch: Sequence[Record]) -> fleet_pb2.DeliverOutcomesRequest:
    """The message that carries records, ascending by sequence."""
    return fleet_pb2.DeliverOutcomesRequest(
        device_id=device_id,
        records=[
            fleet_pb2.OutcomeRecord(
                sequence=record.sequence,
                model=record.counts.model,
                artifact_digest=record.counts.artifact_digest,
                counts=fleet_pb2.OutcomeCounts(**{name: getattr(record.counts, name) for name in _SUMMED}),
                started_at=record.counts.started_at,
                ended_at=record.counts.ended_at,
            )
            for record in batch
        ],
    )


def bounded(intervals: Sequence[IntervalCounts], limit: int) -> list[IntervalCounts]:
    """The intervals, summed per artifact when there are more than ``limit``."""
    if len(intervals) <= limit:
        return list(intervals)
    merged: dict[tuple[str, str], IntervalCounts] = {}
    for interval in intervals:
        key = (interval.model, interval.artifact_digest)
        merged[key] = _sum(merged[key], interval) if key in merged else interval
    return list(merged.values())


def _sum(first: IntervalCounts, second: IntervalCounts) -> IntervalCounts:
    return IntervalCounts(
        model=first.model,
        artifact_digest=first.artifact_digest,
        started_at=min(first.started_at, second.started_at),
        ended_at=max(first.ended_at, second.ended_at),
        **{name: getattr(first, name) + getattr(second, name) for name in _SUMMED},
    )
