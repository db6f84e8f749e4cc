"""Takes in what devices send: heartbeats and outcome records. Says so when several agents report under one id.

Owns the order of things: a new device is on disk before it is told anything, and a record is counted once for each
(device, instance) and durable before that is answered. What devices should run is ``fleet_queries``', writing is
``fleet_store``'s, and whether there are several agents is decided in ``cloud_core.policy.rollouts.instances``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from cloud_core.fleet import outcome_totals
from cloud_core.fleet.devices import Delivered, Devices, Report, check_key, is_news
from cloud_core.fleet.fleet_queries import FleetQueries
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.fleet.messages import DesiredModel, HeartbeatReply
from cloud_core.fleet.outcome_totals import Delivery, Record
from cloud_core.fleet.settings import FleetSettings
from cloud_core.policy.rollouts import rollout as policy
from cloud_core.policy.rollouts.instances import agents_by_instance, must_renew
from penstock.errors import InvalidInput, StorageError
from penstock.process.telemetry import log
from penstock.wire.device_ids import check_device_id

_log = logging.getLogger(__name__)
_NEVER = Delivered(sequence=0, updated_at=0.0)


class Reception:
    """Takes in what devices send.

    Attributes:
        changing: held while something is written; one change is under way at a time.
        news: set when a rollout should be looked at.
    """

    def __init__(
        self,
        store: FleetStore,
        devices: Devices,
        queries: FleetQueries,
        settings: FleetSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._devices, self._queries, self._settings, self._now = store, devices, queries, settings, now
        self._duplicated: set[str] = set()
        self.changing = asyncio.Lock()
        self.news = asyncio.Event()

    @property
    def duplicated(self) -> int:
        """Return how many ids several agents report under."""
        at = self._now().timestamp()
        return sum(len(self._devices.agents(device_id, at)) > 1 for device_id in self._duplicated)

    async def heartbeat(self, report: Report) -> HeartbeatReply:
        """Take a report in; answer what the device should run, and when to report again.

        Raises:
            InvalidInput: not a device id. QueueFull: too many devices.
        """
        now = self._now()
        before, forgotten = self._devices.see(report, now.timestamp())
        device = self._devices.get(report.device_id)
        assert device is not None
        if before is None or forgotten:
            async with self.changing:  # a new device is on disk before it is told anything
                await self._store.save_devices(self._devices, [report.device_id], forgotten=forgotten)
        is_busy = report.device_id in self._store.busy
        if is_busy and (before is None or is_news(before, device, quiet_s=2 * self._settings.busy_heartbeat_s)):
            self.news.set()
        return HeartbeatReply(
            models=await self._told(report.device_id),
            next_heartbeat_s=self._settings.busy_heartbeat_s if is_busy else self._settings.heartbeat_s,
            must_renew_instance=self._look_at_agents(report, now),
        )

    async def _told(self, device_id: str) -> tuple[DesiredModel, ...]:
        """Return what a device should run. That it was told so by a rollout is on disk before it is."""
        device = self._devices.get(device_id)
        assert device is not None
        answer = self._queries.desired_models(device.report)
        if not self._store.newly_told(device_id, answer):
            return answer
        # a device that an update kills must not be taken for one that was switched off
        async with self.changing:
            answer = self._queries.desired_models(device.report)
            await self._store.hand(device_id, answer, at=self._now())
        self.news.set()
        return answer

    async def deliver(self, device_id: str, instance: str, records: Sequence[Record]) -> int:
        """Count outcome records once each; answer the highest sequence of the instance that is durable.

        Raises:
            InvalidInput: not a device id, or too many records at once. QueueFull: too many devices, or instances.
        """
        if len(records) > self._settings.max_records:
            raise InvalidInput(
                f"records: {len(records)} in one delivery, more than {self._settings.max_records}", field="records"
            )
        check_device_id(device_id)
        check_key("instance", instance)
        async with self.changing:
            at = self._now()
            if self._devices.get(device_id) is None:
                _, forgotten = self._devices.see(Report(device_id=device_id), at.timestamp())
                await self._store.save_devices(self._devices, [device_id], forgotten=forgotten)
            device = self._devices.get(device_id)
            assert device is not None
            durable = device.delivered.get(instance, _NEVER).sequence
            totals = self._store.totals.get(device_id, {}).get(instance, {})
            folded = outcome_totals.fold(records, durable_sequence=durable, totals=totals)
            if folded.refused:
                log(_log, logging.WARNING, "outcome records refused", device=device_id, records=len(folded.refused),
                    reason=folded.refused[0])  # fmt: skip
            if folded.sequence > durable:
                gone = self._devices.room_for(device_id, instance, at.timestamp())
                delivery = Delivery(device_id=device_id, instance=instance, folded=folded, forgotten=gone)
                keep = self._settings.max_artifacts_per_device
                await self._store.deliver(delivery, self._devices, at=at, keep=keep)
        if any(entry.rollout.plan.artifact_digest in folded.totals for entry in self._store.active()):
            self.news.set()
        return folded.sequence

    async def save_reported(self) -> None:
        """Write down what devices reported last. Call it with ``changing`` held.

        Raises:
            StorageError: the disk said no.
        """
        dirty = self._devices.dirty.copy()
        self._devices.dirty.clear()  # before the wait: what is reported meanwhile is dirty again
        try:
            if dirty:
                await self._store.save_devices(self._devices, sorted(dirty), forgotten=[])
        except StorageError:
            self._devices.dirty |= dirty
            raise

    def _look_at_agents(self, report: Report, now: datetime) -> bool:
        """Tell when several agents begin, or cease, to report under one id; return whether this one is to renew."""
        device_id = report.device_id
        agents = self._devices.agents(device_id, now.timestamp())
        if len(agents) > 1 and device_id not in self._duplicated:
            self._duplicated.add(device_id)
            shared = max(agents_by_instance(agents).values()) > 1
            log(_log, logging.ERROR, "several agents report under one device id", device=device_id, agents=len(agents),
                advice="a data directory was copied: give each device an id and a directory of its own",
                shared_sequences=shared)  # fmt: skip
            self._tell_rollouts(device_id, f"{device_id}: {len(agents)} agents report under this id", now)
        elif len(agents) <= 1 and device_id in self._duplicated:
            self._duplicated.discard(device_id)
            log(_log, logging.WARNING, "one agent reports under this device id again", device=device_id)
            self._tell_rollouts(device_id, f"{device_id}: one agent reports under this id again", now)
        return must_renew(agents, report.run)

    def _tell_rollouts(self, device_id: str, text: str, now: datetime) -> None:
        for entry in self._store.active():
            if any(device.device_id == device_id for device in entry.rollout.plan.devices):
                self._store.show(entry, policy.with_event(entry.rollout, text, now))
                self.news.set()
