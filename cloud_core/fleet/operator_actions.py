"""What operators do beside rollouts, and how whatever they do is recorded: who did it, when and why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from cloud_core.fleet.devices import Devices, ReportedModel
from cloud_core.fleet.fleet_queries import FleetQueries
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.state import Transaction
from cloud_core.state import fleet as rows
from penstock.errors import Conflict, NotFound
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


class OperatorActions:
    """Acts on an operator's word. One change of the fleet's state is under way at a time: ``changing`` is its lock."""

    def __init__(
        self,
        store: FleetStore,
        devices: Devices,
        queries: FleetQueries,
        registry: Registry,
        now: Callable[[], datetime],
        changing: asyncio.Lock,
    ) -> None:
        self._store, self._devices, self._queries, self._registry = store, devices, queries, registry
        self._now = now
        self._changing = changing

    async def set_default(self, model: str, version: str, by: Operator) -> tuple[ModelVersion, str]:
        """Move what the core serves by default; return that and the digest from before. Recorded with who and why.

        Raises:
            NotFound: no such model or version. Conflict: devices run the model, whose default moves with a rollout.
        """
        found = self._registry.resolve(model, version)
        async with self._changing:
            self._queries.check_unused(model, version)
            before = self._queries.default(model)
            action = recorded("core default", model, by, self._now())
            await self._store.set_default(model, found.digest, action)
        log(_log, logging.WARNING, "default moved", model=model, to=found.digest, was=before)
        return found, before

    def check_default(self, model: str, version: str) -> None:
        """
        Raises:
            Conflict: devices run the model, whose default moves with a rollout.
        """
        self._queries.check_unused(model, version)

    async def act(self, command: str, subject: str, by: Operator, work: Callable[[Transaction], None]) -> None:
        """Do what another room keeps in the database, recorded with who and why in the same transaction.

        Raises:
            StorageError: the disk said no; nothing changed.
        """
        await self._store.record(recorded(command, subject, by, self._now()), work)

    async def trust(self, device_id: str, model: str, by: Operator) -> tuple[ReportedModel, ...]:
        """Let a device's audit begin without evidence; return the models it is about. Recorded with who and why.

        Raises:
            NotFound: no such device, or it runs no such model under a certificate.
        """
        async with self._changing:
            found = self._queries.to_trust(device_id, model)
            at = self._now().timestamp()
            trusted = [
                rows.TrustRow(
                    device_id=device_id,
                    model=one.model,
                    artifact_digest=one.active_digest,
                    certificate_digest=one.certificate_digest,
                    trusted_at=at,
                )
                for one in found
            ]
            subject = f"{device_id}: {', '.join(one.model for one in found)}"[:512]
            await self._store.trust(trusted, recorded("fleet trust", subject, by, self._now()))
        return found

    async def forget(self, device_id: str, by: Operator) -> None:
        """Forget a device that is gone, with everything that is known of it. Recorded with who and why.

        Raises:
            NotFound: no such device. Conflict: it still reports, or a rollout that is under way is about it.
        """
        async with self._changing:
            if self._devices.get(device_id) is None:
                raise NotFound(f"no device {device_id[:80]!r}; 'penstock fleet devices' lists them")
            if not self._queries.is_silent(device_id):
                raise Conflict(f"{device_id} still reports, and would be back at once; stop its agent first")
            if self._store.busy.get(device_id):
                rollout = self._store.busy[device_id][0]
                raise Conflict(f"rollout {rollout} is about {device_id}; abort it, or wait for its end")
            action = recorded("fleet forget", device_id, by, self._now())
            await self._store.save_devices(self._devices, [], forgotten=[device_id], action=action)
            self._devices.forget(device_id)

    def done(self) -> tuple[rows.ActionRow, ...]:
        """Return what operators did, oldest first."""
        return tuple(self._store.actions)


def recorded(action: str, subject: str, by: Operator, at: datetime) -> rows.ActionRow:
    """Write an operator's command into the log, and return what is written into the database with it."""
    log(_log, logging.INFO, "operator's command", command=action, subject=subject, who=by.who, reason=by.reason)
    return rows.ActionRow(at=at.timestamp(), who=by.who, action=action, subject=subject, reason=by.reason)
