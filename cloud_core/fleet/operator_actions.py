"""What operators do beside rollouts, each recorded with who did it, when and why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from cloud_core.fleet.devices import ReportedModel
from cloud_core.fleet.fleet_queries import FleetQueries
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.state import fleet as rows
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


class OperatorActions:
    """Acts on an operator's word. One change of the fleet's state is under way at a time: ``changing`` is its lock."""

    def __init__(
        self,
        store: FleetStore,
        queries: FleetQueries,
        registry: Registry,
        now: Callable[[], datetime],
        changing: asyncio.Lock,
    ) -> None:
        self._store, self._queries, self._registry, self._now = store, queries, registry, now
        self._changing = changing

    async def set_default(self, model: str, version: str, *, who: str, reason: str) -> tuple[ModelVersion, str]:
        """Move what the core serves by default; return that and the digest from before. Recorded with who and why.

        Raises:
            NotFound: no such model or version. Conflict: devices run the model, whose default moves with a rollout.
        """
        found = self._registry.resolve(model, version)
        async with self._changing:
            self._queries.check_unused(model, version)
            before = self._queries.default(model)
            await self._store.set_default(model, found.digest, at=self._now(), who=who, reason=reason)
        log(_log, logging.WARNING, "default moved", model=model, to=found.digest, was=before, who=who, reason=reason)
        return found, before

    async def trust(self, device_id: str, model: str, *, who: str, reason: str) -> tuple[ReportedModel, ...]:
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
            action = rows.ActionRow(at=at, who=who, action="fleet trust", subject=subject, reason=reason)
            await self._store.trust(trusted, action)
        log(_log, logging.WARNING, "device trusted", device=device_id, subject=subject, who=who, reason=reason)
        return found

    def done(self) -> tuple[rows.ActionRow, ...]:
        """Return what operators did, oldest first."""
        return tuple(self._store.actions)
