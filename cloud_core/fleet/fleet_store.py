"""The fleet store: rollouts, assignments and outcome totals, in memory as they are on disk.

Owns writing: every change is one transaction, and memory changes only after it is durable, so that ``kill -9`` at any
point leaves a state that the next start continues from. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from cloud_core.fleet import entries
from cloud_core.fleet.devices import Delivered, Devices
from cloud_core.fleet.entries import Entry
from cloud_core.fleet.evidence import FleetEvidence, evidence_rows
from cloud_core.fleet.messages import DesiredModel
from cloud_core.fleet.outcome_totals import Delivery, counts_rows
from cloud_core.fleet.settings import EvidenceSettings
from cloud_core.policy.rollouts import rollout as policy
from cloud_core.policy.rollouts.assignments import Assignment, FleetRelease
from cloud_core.policy.rollouts.rollout import Rollout
from cloud_core.registry.registry import Registry
from cloud_core.state import Database, Transaction, catalog, uncancelled
from cloud_core.state import fleet as rows
from penstock.errors import NotFound
from penstock.wire.outcomes import NOTHING, OutcomeCounts


class FleetStore:
    """Keeps all rollouts, assignments and totals. Its caller makes sure that one change is under way at a time.

    Attributes:
        entries: rollouts by id, oldest first.
        assignments: what a device was told to run, by (device id, model).
        releases: what devices without an assignment run, by model.
        actions: what operators did, oldest first.
        totals: outcome counts by device id, instance and artifact digest.
        evidence: what the audits of all devices say about each promise.
        busy: the active rollouts that are about a device, by its id.
        handed: devices that were told to run the artifact of an active rollout, by the rollout's number.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        stored: rows.FleetRows,
        evidence: EvidenceSettings | None = None,
    ) -> None:
        self._database, self._registry = database, registry
        self.evidence = FleetEvidence(registry, evidence or EvidenceSettings(), stored)
        self.entries = {row.rollout_id: entries.decoded(row) for row in stored.rollouts}
        self.assignments = {
            (row.device_id, row.model): Assignment(
                artifact_digest=row.digest, certificate_digest=row.certificate_digest
            )
            for row in stored.assignments
        }
        self.releases = {
            row.model: FleetRelease(artifact_digest=row.digest, certificates=row.certificates)
            for row in stored.releases
        }
        self.actions = list(stored.actions)
        self._last_number = stored.last_number
        self._rollout_ids = {(row.device_id, row.model): row.rollout_id for row in stored.assignments}
        self.totals: dict[str, dict[str, dict[str, OutcomeCounts]]] = {}
        for row in stored.counts:
            of_device = self.totals.setdefault(row.device_id, {})
            of_device.setdefault(row.instance, {})[row.artifact_digest] = row.counts
        self.busy = self._busy()
        self._trusts = {(row.device_id, row.model): row for row in stored.trusts}
        self.handed: dict[int, set[str]] = {}
        for number, device_id in stored.handed:
            self.handed.setdefault(number, set()).add(device_id)

    def get(self, rollout_id: str) -> Entry:
        """Return a rollout.

        Raises:
            NotFound: there is no such rollout; the message names the newest ones.
        """
        entry = self.entries.get(rollout_id)
        if entry is None:
            if not self.entries:
                raise NotFound("there is no rollout yet; make one with 'penstock fleet plan'")
            raise NotFound(f"no rollout {rollout_id[:100]!r}; the newest are: {', '.join(list(self.entries)[-5:])}")
        return entry

    def active(self, model: str | None = None) -> list[Entry]:
        """Return the rollouts that are running or paused, oldest first."""
        return [
            entry
            for entry in self.entries.values()
            if entry.rollout.state in policy.ACTIVE and model in (None, entry.rollout.plan.model)
        ]

    def counts(self, device_id: str, artifact_digest: str) -> dict[str, OutcomeCounts]:
        """Return the totals of an artifact on a device, by instance."""
        of_device = self.totals.get(device_id, {})
        return {name: totals[artifact_digest] for name, totals in of_device.items() if artifact_digest in totals}

    def counts_since(self, entry: Entry, device_id: str) -> dict[str, OutcomeCounts]:
        """Return what each instance of a device counted of a rollout's artifact since the device's wave was released.

        An instance that came later counts from its beginning.
        """
        found = self.counts(device_id, entry.rollout.plan.artifact_digest)
        since = entry.baselines
        return {name: one.since(since.get(entries.baseline(device_id, name), NOTHING)) for name, one in found.items()}

    @uncancelled
    async def add(self, entry: Entry, action: rows.ActionRow, *, keep: int) -> None:
        """Record a new plan and who made it, and forget the oldest finished rollouts beyond ``keep``."""
        finished = [e for e in self.entries.values() if e.rollout.state not in policy.ACTIVE]
        dropped = finished[: max(0, len(self.entries) + 1 - keep)]

        def work(transaction: Transaction) -> None:
            rows.save_rollout(transaction, entries.row(entry))
            rows.drop_rollouts(transaction, [old.number for old in dropped])
            rows.note_number(transaction, entry.number)
            rows.record_action(transaction, action)

        await self._database.run(work)
        self._note(action)
        self._last_number = entry.number
        for old in dropped:
            del self.entries[old.rollout.plan.rollout_id]
        self.entries[entry.rollout.plan.rollout_id] = entry

    @uncancelled
    async def delete(self, entry: Entry, action: rows.ActionRow) -> None:
        """Forget a plan, and record who wanted that."""

        def work(transaction: Transaction) -> None:
            rows.drop_rollouts(transaction, [entry.number])
            rows.record_action(transaction, action)

        await self._database.run(work)
        self._note(action)
        del self.entries[entry.rollout.plan.rollout_id]

    @uncancelled
    async def move(
        self, entry: Entry, after: Rollout, *, default: str, at: datetime, action: rows.ActionRow | None = None
    ) -> None:
        """Record what a rollout has become, with everything that follows from it, in one transaction.

        Args:
            default: the model's default version from now on; "" leaves it.
            action: the operator's, where it follows from one.
        """
        plan = after.plan
        targets = policy.desired_all(after)
        baselines: dict[str, OutcomeCounts] = {}
        for device in plan.devices:
            if device.wave < len(after.waves) and device.device_id not in entry.baselines:
                counts = {"": NOTHING, **self.counts(device.device_id, plan.artifact_digest)}
                baselines.update({entries.baseline(device.device_id, name): one for name, one in counts.items()})
        changed = replace(entry, rollout=after, baselines={**entry.baselines, **baselines})
        # a fleet that went over as a whole follows the default from here on, latecomers included
        is_settled = after.state == "succeeded" and plan.covers_fleet
        is_back = plan.covers_fleet and entry.rollout.state == "succeeded" and after.state == "undone"
        release = entries.release_of(plan) if is_settled else after.previous_release

        is_over = after.state not in policy.ACTIVE

        def work(transaction: Transaction) -> None:
            rows.save_rollout(transaction, entries.row(changed))
            if is_over:
                rows.drop_handed(transaction, [entry.number])
            if is_settled:
                rows.clear_assignments(transaction, plan.model)
            else:
                rows.assign(transaction, [entries.assigned(plan, name, target) for name, target in targets.items()])
            if is_settled or is_back:
                _save_release(transaction, plan.model, release)
            if default:
                catalog.set_default(transaction, plan.model, default, at.timestamp())
            if action is not None:
                rows.record_action(transaction, action)

        await self._database.run(work)
        if action is not None:
            self._note(action)
        self.entries[plan.rollout_id] = changed
        self.busy = self._busy()
        if is_over:
            self.handed.pop(entry.number, None)
        if is_settled:
            self.assignments = {key: value for key, value in self.assignments.items() if key[1] != plan.model}
        else:
            self.assignments.update({(device_id, plan.model): target for device_id, target in targets.items()})
        if is_settled or is_back:
            self.releases.pop(plan.model, None)
            if release is not None:
                self.releases[plan.model] = release
        if default:
            await self._registry.reload()

    def newly_told(self, device_id: str, models: Sequence[DesiredModel]) -> list[int]:
        """Return the numbers of the active rollouts whose artifact a device is told to run for the first time."""
        told = {(model.model, model.artifact_digest) for model in models}
        return [
            entry.number
            for entry in (self.entries[rollout_id] for rollout_id in self.busy.get(device_id, ()))
            if device_id in entry.baselines
            and device_id not in self.handed.get(entry.number, ())
            and (entry.rollout.plan.model, entry.rollout.plan.artifact_digest) in told
        ]

    @uncancelled
    async def hand(self, device_id: str, models: Sequence[DesiredModel], *, at: datetime) -> None:
        """Record what a device is about to be told by active rollouts."""
        numbers = self.newly_told(device_id, models)
        await self._database.run(
            lambda transaction: rows.record_handed(transaction, device_id, numbers, at.timestamp())
        )
        for number in numbers:
            self.handed.setdefault(number, set()).add(device_id)

    def pin(self, assignments: Mapping[tuple[str, str], Assignment], releases: Mapping[str, FleetRelease]) -> None:
        """Write down certificates that an older release looked up at each heartbeat. Blocks: for start-up."""
        old = {key: self._rollout_ids.get(key, "") for key in assignments}

        def work(transaction: Transaction) -> None:
            rows.assign(
                transaction,
                [
                    rows.AssignmentRow(
                        device_id=device_id,
                        model=model,
                        digest=target.artifact_digest,
                        rollout_id=old[device_id, model],
                        certificate_digest=target.certificate_digest,
                    )
                    for (device_id, model), target in assignments.items()
                ],
            )
            for model, release in releases.items():
                _save_release(transaction, model, release)

        if assignments or releases:
            self._database.run_now(work)
            self.assignments.update(assignments)
            self.releases.update(releases)

    @uncancelled
    async def set_default(self, model: str, digest: str, action: rows.ActionRow) -> None:
        """Move what the core serves by default, and record who did it, in one transaction."""

        def work(transaction: Transaction) -> None:
            catalog.set_default(transaction, model, digest, action.at)
            rows.record_action(transaction, action)

        await self._database.run(work)
        self._note(action)
        await self._registry.reload()

    @uncancelled
    async def record(self, action: rows.ActionRow, work: Callable[[Transaction], None]) -> None:
        """Do what is kept elsewhere in the database, and record who did it, in one transaction."""

        def both(transaction: Transaction) -> None:
            work(transaction)
            rows.record_action(transaction, action)

        await self._database.run(both)
        self._note(action)

    @uncancelled
    async def trust(self, trusted: Sequence[rows.TrustRow], action: rows.ActionRow) -> None:
        """Record that an operator trusts promises of a device, and who did it, in one transaction."""

        def work(transaction: Transaction) -> None:
            rows.trust(transaction, trusted)
            rows.record_action(transaction, action)

        await self._database.run(work)
        self._note(action)
        self._trusts.update({(row.device_id, row.model): row for row in trusted})

    def trusted_at(self, device_id: str, model: str, artifact_digest: str, certificate_digest: str) -> float:
        """Return when an operator trusted a promise on a device (UNIX seconds); 0 for never."""
        found = self._trusts.get((device_id, model))
        if found is None or (found.artifact_digest, found.certificate_digest) != (artifact_digest, certificate_digest):
            return 0.0
        return found.trusted_at

    def show(self, entry: Entry, after: Rollout) -> None:
        """Keep a changed status or verdict in memory only: both are worked out again after a restart."""
        self.entries[after.plan.rollout_id] = replace(entry, rollout=after)

    @uncancelled
    async def deliver(self, delivery: Delivery, devices: Devices, *, at: datetime, keep: int) -> None:
        """Record totals and evidence with the sequence that they include; forget the oldest artifacts over ``keep``."""
        device_id, instance, folded = delivery.device_id, delivery.instance, delivery.folded
        before = self.totals.get(device_id, {}).get(instance, {})
        after = {**{d: c for d, c in before.items() if d not in folded.totals}, **folded.totals}
        dropped = list(after)[: max(0, len(after) - keep)]
        changed = counts_rows(delivery, at.timestamp(), without=dropped)
        delivered = Delivered(sequence=folded.sequence, updated_at=at.timestamp())
        device = devices.row(device_id)
        row = rows.InstanceRow(
            device_id=device_id, instance=instance, durable_sequence=delivered.sequence, updated_at=delivered.updated_at
        )
        new = {digest: counts.since(before.get(digest, NOTHING)) for digest, counts in folded.totals.items()}
        known = devices.get(device_id)
        assert known is not None
        change = self.evidence.change(known.report_of(instance), new, folded.models, at=at.timestamp())

        def work(transaction: Transaction) -> None:
            rows.forget_instances(transaction, device_id, delivery.forgotten)
            rows.record_evidence(transaction, **evidence_rows(device_id, instance, change))
            rows.record_outcomes(transaction, device, row, changed)
            if dropped:
                rows.drop_counts(transaction, device_id, instance, dropped)

        await self._database.run(work)
        totals = self.totals.setdefault(device_id, {})
        for gone in delivery.forgotten:
            totals.pop(gone, None)
        totals[instance] = {digest: counts for digest, counts in after.items() if digest not in dropped}
        devices.note_delivered(device_id, instance, delivered, delivery.forgotten)
        self.evidence.take_on(device_id, instance, change)
        self.evidence.forget_instances(device_id, delivery.forgotten)

    @uncancelled
    async def save_devices(
        self, devices: Devices, device_ids: list[str], *, forgotten: list[str], action: rows.ActionRow | None = None
    ) -> None:
        """Save devices as they are now, and forget others with everything that is known of them."""
        changed = [devices.row(device_id) for device_id in device_ids]

        def work(transaction: Transaction) -> None:
            if forgotten:
                rows.forget_devices(transaction, forgotten)
            rows.save_devices(transaction, changed)
            if action is not None:
                rows.record_action(transaction, action)

        await self._database.run(work)
        if action is not None:
            self._note(action)
        gone = set(forgotten)
        for device_id in gone:
            self.totals.pop(device_id, None)
        self.evidence.forget(gone)
        self._trusts = {key: row for key, row in self._trusts.items() if key[0] not in gone}
        for handed in self.handed.values():
            handed -= gone
        self.assignments = {key: value for key, value in self.assignments.items() if key[0] not in gone}

    def _note(self, action: rows.ActionRow) -> None:
        self.actions = [*self.actions, action][-rows.MAX_ACTIONS :]

    def _busy(self) -> dict[str, list[str]]:
        """Return the active rollouts of each device that has any."""
        found: dict[str, list[str]] = {}
        for entry in self.active():
            for device in entry.rollout.plan.devices:
                found.setdefault(device.device_id, []).append(entry.rollout.plan.rollout_id)
        return found

    def next_number(self) -> int:
        """Return the number of the next rollout: one that was never given, also to a plan that was deleted since."""
        return max((self._last_number, *(entry.number for entry in self.entries.values()))) + 1


def _save_release(transaction: Transaction, model: str, release: FleetRelease | None) -> None:
    if release is None:
        rows.drop_release(transaction, model)
        return
    row = rows.ReleaseRow(model=model, digest=release.artifact_digest, certificates=release.certificates)
    rows.set_release(transaction, row)
