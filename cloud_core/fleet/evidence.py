"""What the audits of all devices say about each promise, with and without a rollout: the pools of the evidence.

Owns the pools in memory. What a delivery changes is worked out first and taken on when it is on disk
(``fleet_store``), so that ``kill -9`` loses nothing and counts nothing twice. When the evidence is enough is decided in
``cloud_core.policy.rollouts.fleet_evidence``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from cloud_core.fleet.devices import Report
from cloud_core.fleet.messages import PromiseStatus
from cloud_core.fleet.settings import EvidenceSettings
from cloud_core.policy.rollouts import fleet_evidence as policy
from cloud_core.policy.rollouts.fleet_evidence import DeviceEvidence, Limits
from cloud_core.registry.registry import Registry
from cloud_core.state import fleet as rows
from penstock.errors import ConfigError, PenstockError
from penstock.policy.change_detection import FRESH, Evidence
from penstock.process.telemetry import log
from penstock.wire.outcomes import OutcomeCounts

_log = logging.getLogger(__name__)

Promise = tuple[str, str]
"""(artifact digest, certificate digest)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Holds the evidence against one promise, and of its devices those that have audited something.

    Attributes:
        started_at: when the open round began; UNIX seconds, as ``alarmed_at``, which is None before an alarm.
        devices: the evidence of each instance of a device, apart: together they are one device with one vote.
        votes: devices that have voted in the open round.
    """

    model: str
    rounds: Evidence = FRESH
    strength: float = 0.0
    started_at: float
    updated_at: float
    alarmed_at: float | None = None
    devices: dict[str, dict[str, DeviceEvidence]] = field(default_factory=dict)
    votes: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Says what a delivery changes.

    Attributes:
        pools: by promise, without their devices.
        devices: what is new of the instance that delivered, by promise.
        closed: promises whose round is over: all votes begin at nothing.
        dropped: promises that make room for new ones.
    """

    pools: dict[Promise, Pool]
    devices: dict[Promise, DeviceEvidence]
    closed: frozenset[Promise]
    dropped: frozenset[Promise]


class FleetEvidence:
    """Keeps the pools. One change is under way at a time; its caller makes sure of that."""

    def __init__(self, registry: Registry, settings: EvidenceSettings, stored: rows.FleetRows) -> None:
        self._registry, self._settings = registry, settings
        self._limits = Limits(
            run_length=settings.run_length, min_devices=settings.min_devices, round_s=settings.round_s
        )
        self._pools: dict[Promise, Pool] = {}
        for pool in sorted(stored.pools, key=lambda row: row.updated_at):
            self._pools[pool.artifact_digest, pool.certificate_digest] = Pool(
                model=pool.model,
                rounds=msgspec.json.decode(pool.rounds, type=Evidence),
                strength=pool.strength,
                started_at=pool.started_at,
                updated_at=pool.updated_at,
                alarmed_at=pool.alarmed_at,
            )
        for row in stored.evidence:
            found = self._pools.get((row.artifact_digest, row.certificate_digest))
            if found is not None:
                device = msgspec.json.decode(row.document, type=DeviceEvidence)
                of_device = found.devices.setdefault(row.device_id, {})
                of_device[row.instance] = device if row.has_vote else policy.without_vote(device)
                if row.has_vote:
                    found.votes.add(row.device_id)

    def change(
        self, report: Report, delivered: Mapping[str, OutcomeCounts], models: Mapping[str, str], *, at: float
    ) -> Change:
        """Work out what the audits of one instance of a device change.

        Args:
            report: the last one of the instance: which certificate of an artifact it uses, at which level.
            delivered: counts that are new, by artifact digest, and ``models`` the names of their models.
        """
        pools: dict[Promise, Pool] = {}
        devices: dict[Promise, DeviceEvidence] = {}
        closed = set()
        for digest, counts in delivered.items():
            found = self._promise_of(report, digest, models[digest]) if counts.audited else None
            if found is None:
                continue
            promise, bound = found
            pool = self._pools.get(promise) or Pool(model=models[digest], started_at=at, updated_at=at)
            of_device = pool.devices.get(report.device_id, {})
            known = of_device.get(report.instance, DeviceEvidence(bound=bound))
            mine = policy.noted(replace(known, bound=bound), audited=counts.audited, harm=counts.audit_harm)
            after, is_closed = self._looked_at(pool, report.device_id, {**of_device, report.instance: mine}, at)
            pools[promise], devices[promise] = after, policy.without_vote(mine) if is_closed else mine
            if is_closed:
                closed.add(promise)
        fresh = [promise for promise in pools if promise not in self._pools]
        over = max(0, len(self._pools) + len(fresh) - self._settings.max_promises)
        dropped = frozenset([promise for promise in self._pools if promise not in pools][:over])
        return Change(pools=pools, devices=devices, closed=frozenset(closed), dropped=dropped)

    def take_on(self, device_id: str, instance: str, change: Change) -> None:
        """Take on what is durable by now."""
        for promise in change.dropped:
            del self._pools[promise]
        for promise, after in change.pools.items():
            before = self._pools.pop(promise, after)  # the newest is the last
            alarmed_before = None if before is after else before.alarmed_at
            kept = replace(after, devices=before.devices, votes=before.votes)
            kept.devices.setdefault(device_id, {})[instance] = change.devices[promise]
            kept.votes.add(device_id)
            if promise in change.closed:
                for name in kept.votes:
                    kept.devices[name] = {key: policy.without_vote(one) for key, one in kept.devices[name].items()}
                kept.votes.clear()
            self._pools[promise] = kept
            if after.alarmed_at is not None and after.alarmed_at != alarmed_before:
                log(_log, logging.ERROR, "the fleet sees more harm than was certified", model=after.model,
                    artifact=promise[0], certificate=promise[1], devices=len(kept.devices),
                    demotes=self._settings.demotes)  # fmt: skip

    def forget(self, device_ids: set[str]) -> None:
        """Forget devices."""
        for pool in self._pools.values():
            for device_id in device_ids & pool.devices.keys():
                del pool.devices[device_id]
                pool.votes.discard(device_id)

    def forget_instances(self, device_id: str, instances: Iterable[str]) -> None:
        """Forget instances of a device."""
        for pool in self._pools.values():
            of_device = pool.devices.get(device_id, {})
            for instance in instances:
                of_device.pop(instance, None)

    def is_distrusted(self, artifact_digest: str, certificate_digest: str) -> bool:
        """Tell whether devices have to end keeping answers under a promise."""
        pool = self._pools.get((artifact_digest, certificate_digest))
        return self._settings.demotes and pool is not None and pool.alarmed_at is not None

    def statuses(self, artifact: str = "") -> tuple[PromiseStatus, ...]:
        """Return what is known of every promise, or those of one artifact; the one audited last at the end."""
        return tuple(
            PromiseStatus(
                model=pool.model,
                version=self._registry.tag_of(pool.model, artifact_digest),
                artifact_digest=artifact_digest,
                certificate_digest=certificate_digest,
                devices=len(pool.devices),
                bound=max((one.bound for one in _instances(pool)), default=0.0),
                evidence=pool.strength,
                run_length=self._limits.run_length,
                alarmed_at=pool.alarmed_at,
                is_distrusted=self.is_distrusted(artifact_digest, certificate_digest),
                **self._sums(pool),
            )
            for (artifact_digest, certificate_digest), pool in self._pools.items()
            if artifact in ("", artifact_digest)
        )

    def _looked_at(self, pool: Pool, device_id: str, mine: dict[str, DeviceEvidence], at: float) -> tuple[Pool, bool]:
        """Return the pool after a vote, and whether that ended the round."""
        votes = len(pool.votes) + (device_id not in pool.votes)
        known = len(pool.devices) + (device_id not in pool.devices)
        if not policy.is_round_over(votes=votes, devices=known, lasted_s=at - pool.started_at, limits=self._limits):
            return replace(pool, updated_at=at), False
        devices = {**pool.devices, device_id: mine}
        voted = sorted(pool.votes | {device_id})
        rounds = policy.after_round(pool.rounds, [tuple(devices[name].values()) for name in voted])
        strength = policy.fleet_strength(rounds, [tuple(one.values()) for one in devices.values()], self._limits)
        is_alarm = pool.alarmed_at is None and strength >= self._limits.run_length
        return replace(
            pool,
            rounds=rounds,
            strength=strength,
            started_at=at,
            updated_at=at,
            alarmed_at=at if is_alarm else pool.alarmed_at,
        ), True

    def _promise_of(self, report: Report, digest: str, model: str) -> tuple[Promise, float] | None:
        """Return the promise that a device keeps with an artifact, and its bound; None where it keeps none."""
        reported = report.model(model)
        if reported.active_digest != digest or not reported.certificate_digest:
            return None
        try:
            certificates = dict(self._registry.certificates_of(digest))
            certificate = certificates[reported.certificate_digest]
            bound = certificate.at(reported.max_harm or None).audit_max_harm
        except ConfigError:
            bound = certificate.largest_audit_max_harm  # a level that this core does not know
        except (KeyError, PenstockError):
            return None
        return (digest, reported.certificate_digest), bound

    def _sums(self, pool: Pool) -> dict[str, int]:
        audited = sum(one.audited for one in _instances(pool))
        return {"audited": audited, "audit_harm": sum(one.harm for one in _instances(pool))}


def _instances(pool: Pool) -> Iterator[DeviceEvidence]:
    return (one for of_device in pool.devices.values() for one in of_device.values())


def evidence_rows(device_id: str, instance: str, change: Change) -> dict[str, Any]:
    """Return a change as it is stored: the arguments of ``cloud_core.state.fleet.record_evidence``."""
    return {
        "pools": [
            rows.PoolRow(
                artifact_digest=promise[0],
                certificate_digest=promise[1],
                model=pool.model,
                rounds=msgspec.json.encode(pool.rounds).decode(),
                strength=pool.strength,
                started_at=pool.started_at,
                updated_at=pool.updated_at,
                alarmed_at=pool.alarmed_at,
            )
            for promise, pool in change.pools.items()
        ],
        "devices": [
            rows.EvidenceRow(
                device_id=device_id,
                instance=instance,
                artifact_digest=promise[0],
                certificate_digest=promise[1],
                document=msgspec.json.encode(device).decode(),
                has_vote=device.vote_audited > 0,
            )
            for promise, device in change.devices.items()
        ],
        "closed": change.closed,
        "dropped": change.dropped,
    }
