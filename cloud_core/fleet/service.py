"""The fleet service: takes reports in, answers what devices should run, and carries rollouts from wave to wave.

Observe, decide, act: decisions are ``cloud_core.policy``'s, writing is ``fleet_store``'s, the dialogue with devices is
``reception``'s. The loop is level-triggered;
running it at any time, twice, or after ``kill -9`` is harmless. The service never calls a device: the device always
dials.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cloud_core.fleet.devices import Devices, Report
from cloud_core.fleet.entries import Entry, new_entry
from cloud_core.fleet.fleet_queries import FleetQueries
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.fleet.fleet_views import FleetViews
from cloud_core.fleet.messages import (
    DeviceStatus,
    HeartbeatReply,
    PlanRequest,
    PromiseStatus,
    RolloutStatus,
)
from cloud_core.fleet.operator_actions import OperatorActions, recorded
from cloud_core.fleet.outcome_totals import Record
from cloud_core.fleet.reception import Reception
from cloud_core.fleet.settings import FleetSettings
from cloud_core.policy.rollouts import operations, planning
from cloud_core.policy.rollouts import rollout as policy
from cloud_core.policy.rollouts.assignments import Plan
from cloud_core.policy.rollouts.gate_settings import check_gate
from cloud_core.policy.rollouts.operations import Action
from cloud_core.policy.rollouts.rollout import NOBODY, Event, Hold, Operator, Rollout, Stop
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from cloud_core.state import fleet as rows
from penstock.errors import Conflict, InvalidInput, NotFound, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
Change = Callable[[Rollout, datetime], Rollout]


class FleetService:
    """Owns devices, outcomes and rollouts of one core.

    Attributes:
        views: what people are shown of devices and rollouts.
        actions: what operators do beside rollouts.
        stops: rollouts that a gate stopped since the start, by model.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        settings: FleetSettings,
        now: Callable[[], datetime],
        stored: rows.FleetRows,
    ) -> None:
        self.settings, self._registry, self._now = settings, registry, now
        self._store = FleetStore(database, registry, stored, settings.evidence)
        self._devices = Devices(
            stored,
            max_devices=settings.max_devices,
            max_instances=settings.max_instances_per_device,
            forget_s=settings.forget_s,
            window_s=settings.gate.max_silence_s,
            opened_at=now().timestamp(),
        )
        limit_s = settings.gate.max_silence_s
        self._queries = FleetQueries(self._store, self._devices, registry, now, max_silence_s=limit_s)
        self._store.pin(*self._queries.unpinned())
        self._reception = Reception(self._store, self._devices, self._queries, settings, now)
        self._changing, self._news = self._reception.changing, self._reception.news
        self.views = FleetViews(self._store, self._devices, self._queries, now)
        self.actions = OperatorActions(self._store, self._devices, self._queries, registry, now, self._changing)
        self.stops: Counter[str] = Counter()
        self._flush_at = now()

    @classmethod
    def open(
        cls,
        database: Database,
        registry: Registry,
        settings: FleetSettings | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> FleetService:
        """Read the state that an earlier run left.

        Raises:
            StorageError: it cannot be read.
        """
        return cls(database, registry, settings or FleetSettings(), now, database.run_now(rows.read))

    def __repr__(self) -> str:
        return f"FleetService({len(self._devices)} devices, {len(self._store.active())} active rollouts)"

    # -- devices dial in ---------------------------------------------------------------------------------------------

    async def heartbeat(self, report: Report) -> HeartbeatReply:
        """Take a report in; answer what the device should run, and when to report again. See :class:`Reception`."""
        return await self._reception.heartbeat(report)

    async def deliver_outcomes(self, device_id: str, records: Sequence[Record], *, instance: str = "") -> int:
        """Count outcome records once each; answer the highest sequence of that instance that is durable."""
        return await self._reception.deliver(device_id, instance, records)

    # -- operators ask -----------------------------------------------------------------------------------------------

    def devices(self, labels: Mapping[str, str] | None = None) -> tuple[DeviceStatus, ...]:
        """Return the first devices whose labels match, by id."""
        return self.views.page(labels or {}).devices

    @property
    def duplicated(self) -> int:
        """Return how many device ids several agents report under."""
        return self._reception.duplicated

    def promises(self) -> tuple[PromiseStatus, ...]:
        """Return what the audits of all devices say about each certificate in use."""
        return self._store.evidence.statuses()

    async def plan(self, request: PlanRequest, by: Operator = NOBODY) -> RolloutStatus:
        """Freeze a plan.

        Raises:
            NotFound: no such model or version.
            InvalidInput: waves or gate settings that make no sense.
            Conflict: there is no device to update; the message says why, device by device.
        """
        shares = planning.check_shares(request.waves)
        check_gate(request.gate)
        version = None if request.is_removal else self._registry.resolve(request.model, request.version)
        async with self._changing:
            chosen, skipped = planning.choose(
                self._queries.candidates(request.model, version),
                request.selection,
                target=version.digest if version else "",
                max_silence_s=request.gate.max_silence_s,
            )
            if not chosen:
                nobody = self.views.nobody_there(request.selection.labels)
                why = "; ".join(skipped[:20]) or nobody or f"no known device subscribes to {request.model}"
                raise Conflict(f"the plan is empty, nothing would be updated: {why}")
            number, now = self._store.next_number(), self._now()
            planned = planning.assign_waves(chosen, shares or planning.default_shares(chosen), request.seed)
            rollout = Rollout(
                plan=self._queries.frozen_plan(request, version, planned, skipped, number),
                state="planned",
                created_at=now,
                status="planned; 'penstock fleet apply' runs it",
                events=(Event(at=now, text="planned", who=by.who, reason=by.reason),),
            )
            entry = new_entry(number, rollout)
            action = recorded("fleet plan", rollout.plan.rollout_id, by, now)
            await self._store.add(entry, action, keep=self.settings.max_rollouts)
        return self.views.rollout(entry)

    async def apply(self, rollout_id: str, plan_digest: str = "", by: Operator = NOBODY) -> RolloutStatus:
        """Run a plan exactly as it was shown.

        Raises:
            NotFound: no such plan.
            Conflict: applied before, not the plan that was shown, overtaken by events, or another one is active.
        """
        async with self._changing:
            entry = self._store.get(rollout_id)
            plan = entry.rollout.plan
            if plan_digest and plan_digest != entry.plan_digest:
                raise Conflict(f"plan {rollout_id} has digest {entry.plan_digest}, not {plan_digest}; plan again")
            after = operations.applied(
                entry.rollout,
                default_digest=self._queries.default(plan.model),
                release=self._store.releases.get(plan.model),
                now=self._now(),
                by=by,
            )
            self._check_alone(plan)
            stale = self._queries.elsewhere(plan, policy.bases(plan))
            if stale:
                raise Conflict(
                    f"plan {rollout_id} is out of date: {', '.join(stale[:5])} should run something else by now; "
                    "plan again"
                )
            await self._commit(entry, after, recorded("fleet apply", rollout_id, by, self._now()))
        return await self._settled(rollout_id)

    async def pause(self, rollout_id: str = "", by: Operator = NOBODY) -> RolloutStatus:
        """Release no further wave of a rollout; its gates go on watching.

        Raises:
            NotFound, Conflict: no rollout that could be paused.
        """
        return await self._act("pause", rollout_id, by, lambda rollout, now: operations.paused(rollout, now=now, by=by))

    async def resume(
        self, rollout_id: str = "", by: Operator = NOBODY, *, accept: frozenset[str] | None = frozenset()
    ) -> RolloutStatus:
        """Go on with a paused rollout.

        Args:
            accept: devices whose failure or absence is accepted; None for all.

        Raises:
            NotFound, Conflict: no rollout that could be resumed, or failures that nobody accepted hold it.
        """

        def change(rollout: Rollout, now: datetime) -> Rollout:
            return operations.resumed(rollout, self._queries.observed(rollout), now=now, accept=accept, by=by)

        return await self._act("resume", rollout_id, by, change)

    async def abort(self, rollout_id: str = "", by: Operator = NOBODY, *, keep: bool = False) -> RolloutStatus:
        """End a rollout without its gates; devices go back, or with ``keep`` each stays where it is.

        Raises:
            NotFound, Conflict: no rollout that could be aborted.
        """

        def change(rollout: Rollout, now: datetime) -> Rollout:
            return operations.aborted(rollout, self._queries.observed(rollout), keep=keep, now=now, by=by)

        return await self._act("abort", rollout_id, by, change)

    async def undo(self, rollout_id: str, by: Operator = NOBODY) -> RolloutStatus:
        """Bring every device of a rollout back to what it ran before. It is named: said twice, it takes back one.

        Raises:
            NotFound: no such rollout. Conflict: its devices are back already, or run something newer.
        """
        if not rollout_id:
            raise InvalidInput("rollout_id: name the rollout to undo, so that a second time undoes no other one")
        return await self._act("undo", rollout_id, by, lambda rollout, now: operations.undone(rollout, now=now, by=by))

    async def delete(self, rollout_id: str, by: Operator = NOBODY) -> RolloutStatus:
        """Delete a plan that was not applied; return it as it was.

        Raises:
            NotFound: no such plan. Conflict: it was applied.
        """
        async with self._changing:
            entry = self._store.get(rollout_id)
            operations.check_allowed("delete", entry.rollout)
            shown = self.views.rollout(entry)
            await self._store.delete(entry, recorded("fleet delete", rollout_id, by, self._now()))
        return shown

    def rollout(self, rollout_id: str = "", action: Action | None = None) -> RolloutStatus:
        """Return a rollout.

        Args:
            rollout_id: "" for the newest that is under way, else the newest that was; a plan hides neither.
            action: what is about to be done to it; with "", the one that this action without a name is about.

        Raises:
            NotFound: there is none. Conflict: the action would be refused; whoever asks people first wants to know.
        """
        if action is not None:
            entry = self._store.get(rollout_id) if rollout_id else self._newest_for(action)
            operations.check_allowed(action, entry.rollout)
            if action == "undo":
                self._check_undo(entry.rollout)
            return self.views.rollout(entry)
        shown = policy.shown(entry.rollout for entry in self._store.entries.values())
        return self.views.rollout(self._store.get(rollout_id or (shown.plan.rollout_id if shown else "")))

    def rollouts(self, model: str = "") -> tuple[RolloutStatus, ...]:
        """Return all rollouts that are kept, of one model where one is given, oldest first."""
        return tuple(
            self.views.rollout(entry)
            for entry in self._store.entries.values()
            if model in ("", entry.rollout.plan.model)
        )

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reconcile whenever there is news or time alone changes a verdict. Runs until cancelled."""
        while True:
            self._news.clear()
            try:
                wake_at = await self.reconcile()
            except StorageError as error:
                log(_log, logging.ERROR, "rollouts wait", retry_s=self.settings.flush_s, error=error.message)
                wake_at = self._now() + timedelta(seconds=self.settings.flush_s)
            await asyncio.sleep(self.settings.reconcile_s)
            await self._news_or(wake_at)

    async def reconcile(self) -> datetime:
        """Take every step that is due; return when to look again at the latest.

        Raises:
            StorageError: the disk said no; nothing changed that was not written.
        """
        async with self._changing:
            wake_at = await self._flush()
            for entry in self._store.active():
                wake_at = min(wake_at, await self._advance(entry) or wake_at)
        return wake_at

    async def close(self) -> None:
        """Write down what devices reported last.

        Raises:
            StorageError: the disk said no.
        """
        async with self._changing:
            await self._reception.save_reported()

    async def _news_or(self, wake_at: datetime) -> None:
        wait_s = max(0.0, (wake_at - self._now()).total_seconds())
        with contextlib.suppress(TimeoutError):
            # not wait_for: that of Python 3.11 forgets a cancellation that comes while news wake it
            async with asyncio.timeout(wait_s):
                await self._news.wait()

    async def _flush(self) -> datetime:
        now = self._now()
        if now >= self._flush_at:
            await self._reception.save_reported()
            self._flush_at = now + timedelta(seconds=self.settings.flush_s)
        return self._flush_at

    async def _advance(self, entry: Entry) -> datetime | None:
        """Take the steps of one rollout until it holds."""
        while True:
            rollout, now = entry.rollout, self._now()
            decision = policy.next_step(rollout, self._queries.observed(rollout), now)
            if rollout.state not in policy.ACTIVE:
                return None
            after = policy.apply_step(rollout, decision, now)
            if isinstance(decision.step, Hold):
                self._store.show(entry, after)
                return decision.step.wake_at
            log(_log, logging.INFO, "rollout step", rollout=rollout.plan.rollout_id, status=after.status)
            await self._commit(entry, after)
            self.stops[rollout.plan.model] += isinstance(decision.step, Stop)
            entry = self._store.get(rollout.plan.rollout_id)

    async def _act(self, action: Action, rollout_id: str, by: Operator, change: Change) -> RolloutStatus:
        async with self._changing:
            entry = self._store.get(rollout_id) if rollout_id else self._newest_for(action)
            after = change(entry.rollout, self._now())
            if action == "undo":
                self._check_undo(entry.rollout)
            name = entry.rollout.plan.rollout_id
            await self._commit(entry, after, recorded(f"fleet {action}", name, by, self._now()))
        return await self._settled(name)

    async def _settled(self, rollout_id: str) -> RolloutStatus:
        """Return the rollout after whatever is due at once, so that the answer is never older than the action."""
        await self.reconcile()
        self._news.set()
        return self.views.rollout(self._store.get(rollout_id))

    async def _commit(self, entry: Entry, after: Rollout, action: rows.ActionRow | None = None) -> None:
        default = operations.default_after(entry.rollout, after)
        bounded = replace(after, events=after.events[-self.settings.max_events :])
        await self._store.move(entry, bounded, default=default, at=self._now(), action=action)

    def _newest_for(self, action: Action) -> Entry:
        fitting = [entry for entry in self._store.entries.values() if operations.allows(action, entry.rollout)]
        if not fitting:
            under_way = [f"{one.rollout.plan.rollout_id} is {one.rollout.state}" for one in self._store.active()]
            raise NotFound("; ".join([f"there is no rollout to {action}", *under_way[-1:]]))
        return fitting[-1]

    def _check_alone(self, plan: Plan) -> None:
        for other in self._store.active(plan.model):
            name = other.rollout.plan.rollout_id
            raise Conflict(
                f"rollout {name} of {plan.model} is {other.rollout.state}; finish it, or 'penstock fleet abort {name}'"
            )

    def _check_undo(self, rollout: Rollout) -> None:
        plan = rollout.plan
        if rollout.state not in policy.ACTIVE:
            self._check_alone(plan)
        newer = self._queries.elsewhere(plan, policy.desired_all(rollout))
        if newer:
            raise Conflict(
                f"{', '.join(newer[:5])} should run something newer than {plan.version}; undo the later rollout first"
            )
