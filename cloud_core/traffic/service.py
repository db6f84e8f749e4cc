"""What operators say about a model's traffic: kept in the database, recorded with who and why, and told to serving.

Decisions are ``policy.traffic``'s and ``policy.canary``'s. Every change is written before it takes effect, so that a
core that is killed goes on with what it had acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import msgspec

from cloud_core.fleet.operator_actions import OperatorActions
from cloud_core.policy import canary
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.policy.rollouts.verdicts import GateVerdict
from cloud_core.policy.traffic import (
    NOTHING_SAID,
    Arm,
    CanaryGate,
    Note,
    Shadow,
    Split,
    Traffic,
    VersionPolicy,
    check_split,
    check_versions,
    in_place_of,
)
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.serving.controller import Controller
from cloud_core.serving.settings import EVERY_MODEL, TrafficSettings, version_policies
from cloud_core.serving.shadowing import ShadowCounts
from cloud_core.state import Database, Transaction, uncancelled
from cloud_core.state import traffic as rows
from penstock.errors import Conflict, InvalidInput, Unavailable
from penstock.process.telemetry import log
from penstock.runtime import TEXT_ENGINES
from penstock.wire.inference import ModelState

_log = logging.getLogger(__name__)
Change = Callable[[Traffic], Traffic]


class TrafficService:
    """Owns what was said of each model.

    Attributes:
        verdicts: of the arms of each split, when it was looked at last.
        ends: how splits ended, by model and ``promoted``, ``aborted`` or ``ended``.
        news: set when something was said.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        controller: Controller,
        actions: OperatorActions,
        settings: TrafficSettings,
        now: Callable[[], datetime],
    ) -> None:
        """Read what an earlier run kept, and tell serving."""
        self.verdicts: dict[str, dict[str, GateVerdict]] = {}
        self.ends: Counter[tuple[str, str]] = Counter()
        self.news, self._changing = asyncio.Event(), asyncio.Lock()
        self._registry, self._controller, self._actions, self._now = registry, controller, actions, now
        stored = database.run_now(rows.read)
        self._said = {model: msgspec.json.decode(document, type=Traffic) for model, document in stored.items()}
        self.replace(settings)

    def __repr__(self) -> str:
        return f"TrafficService({len(self._said)} models of which something was said)"

    # -- what there is -----------------------------------------------------------------------------------------------

    def said(self, model: str) -> Traffic:
        """
        Raises:
            NotFound: no such model.
        """
        self._registry.resolve(model)
        return self._said.get(model, NOTHING_SAID)

    def models(self) -> tuple[str, ...]:
        """List the models that there are."""
        return self._registry.models()

    def splits(self) -> dict[str, Split]:
        """Return the splits that are under way, by model."""
        return {model: said.split for model, said in self._said.items() if said.split is not None}

    def versions_of(self, model: str) -> VersionPolicy:
        """Return the policy that holds for a model."""
        said = self._said.get(model, NOTHING_SAID).versions
        return said or self._policies.get(model) or self._policies.get(EVERY_MODEL) or VersionPolicy()

    def looked_at(self, model: str) -> tuple[ModelVersion, list[ModelState]]:
        """Return the default version of a model, and the state of every version."""
        states = [self._controller.state_of(version) for version in self._registry.versions(model)]
        return self._registry.resolve(model), states

    def name_of(self, model: str, digest: str) -> str:
        """Return the name of a version: its newest tag, or its digest where it has none."""
        return self._registry.tag_of(model, digest) or digest

    def counts(self, model: str) -> dict[str, dict[str, object]]:
        """Say what each arm of a split did since its step began, and how a shadow's answers compare, by arm."""
        lanes = self._controller.lanes
        found: dict[str, dict[str, object]] = {}
        for (name, arm), counts in lanes.arms.items():
            if name == model:
                found[arm] = {"requests": dict(counts.requests), "rows": counts.rows}
        shadow = lanes.shadows.get(model)
        for arm, seen in shadow.counts.items() if shadow else ():
            compared = {name: getattr(seen, name) for name in ShadowCounts.__slots__}
            found.setdefault(arm, {})["shadow"] = compared
        return found

    # -- what operators say ------------------------------------------------------------------------------------------

    async def set_default(self, model: str, version: str, by: Operator) -> tuple[ModelVersion, str]:
        """Move the default version; see :meth:`OperatorActions.set_default`."""
        return await self._actions.set_default(model, version, by)

    async def split(
        self,
        model: str,
        arms: Sequence[tuple[str, float]],
        by: Operator,
        *,
        sticky: str = "",
        steps: Sequence[float] = (),
        gate: CanaryGate | None = None,
    ) -> Traffic:
        """Divide the requests that name no version.

        Args:
            arms: versions, each with its percentage; the default version gets the rest.
            steps: percentages that the only arm goes through; its own is the first of them.

        Raises:
            NotFound: no such model or version. InvalidInput: weights, steps or limits that make no sense.
            Conflict: the default version as an arm, or steps to a default that moves with a rollout only.
        """
        found = tuple(self._arm(model, version, percent) for version, percent in arms)
        at = self._now().timestamp()
        before = self.said(model).split
        # the same version with another weight keeps the callers it had
        goes_on = before is not None and [arm.digest for arm in before.arms] == [arm.digest for arm in found]
        salt = before.salt if before is not None and goes_on else f"{model} {at:.3f}"
        split = Split(arms=found, sticky=sticky, steps=tuple(steps), gate=gate or CanaryGate(), since=at, salt=salt)
        check_split(split)
        if steps and (steps[0] != found[0].percent or steps[0] >= 100):
            text = f"steps: expected to begin with the arm's own {found[0].percent:g}%, below 100"
            raise InvalidInput(text, field="steps")
        if steps and steps[-1] >= 100:
            self._actions.check_default(model, found[0].name)
        text = "split: " + ", ".join(f"{arm.percent:g}% to {arm.name}" for arm in found)
        return await self._change(model, "core split", by, text, lambda said: replace(said, split=split))

    async def advance(self, model: str, by: Operator) -> Traffic:
        """Go on to the next step of a split without its gate; the last one makes the arm the default version.

        Raises:
            Conflict: there is no split, or it has no further step.
        """
        split = self._running(model)
        step = canary.next_step(split, by.reason or "an operator said so", now=self._now().timestamp())
        if isinstance(step, canary.Hold):
            raise Conflict(f"the split of {model} cannot go on: {step.reason}")
        await self.take(model, split, step, by)
        return self.said(model)

    async def end(self, model: str, by: Operator) -> Traffic:
        """End a split: everything goes to the default version again.

        Raises:
            Conflict: there is none.
        """
        self._running(model)
        after = await self._change(model, "core split", by, "split ended", lambda said: replace(said, split=None))
        self.ends[model, "ended"] += 1
        return after

    async def shadow(self, model: str, version: str, share: float, by: Operator) -> Traffic:
        """Copy a share of the answered requests to a version; "" ends that.

        Raises:
            NotFound: no such model or version. InvalidInput: a share outside (0, 1], or a model that answers with
            texts. Conflict: it is the default version.
        """
        if not version:
            if self.said(model).shadow is None:
                raise Conflict(f"{model} has no shadow")
            return await self._change(model, "core shadow", by, "shadow ended", lambda said: replace(said, shadow=None))
        if not 0 < share <= 1:
            raise InvalidInput(f"share: {share:g} is not above 0, up to 1", field="share")
        found = self._other_version(model, version)
        if self._controller.variant_of(found.digest).spec.engine in TEXT_ENGINES:
            raise InvalidInput(f"{model} answers with texts, which a shadow does not compare", field="model")
        wanted = Shadow(name=found.tag or version, digest=found.digest, share=share)
        text = f"shadow: {share:.0%} of the answered requests are copied to {wanted.name}"
        return await self._change(model, "core shadow", by, text, lambda said: replace(said, shadow=wanted))

    async def pin(self, model: str, version: str, by: Operator, *, is_pinned: bool = True) -> Traffic:
        """Keep a version in memory, or let it go when room is needed.

        Raises:
            NotFound: no such model or version. Conflict: there is no room for it beside what is held.
        """
        found = self._version(model, version)
        if is_pinned:
            self._controller.demand.check_room(found)

        def change(said: Traffic) -> Traffic:
            others = tuple(digest for digest in said.pins if digest != found.digest)
            unloaded = tuple(digest for digest in said.unloaded if digest != found.digest)
            return (
                replace(said, pins=(*others, found.digest), unloaded=unloaded)
                if is_pinned
                else replace(said, pins=others)
            )

        text = f"{'pinned' if is_pinned else 'unpinned'}: {found.tag or found.digest}"
        return await self._change(model, "core pin", by, text, change)

    async def keep(self, model: str, versions: VersionPolicy | None, by: Operator) -> Traffic:
        """Say which versions are served; None for what the settings say.

        Raises:
            NotFound: no such model. InvalidInput: a policy that says nothing.
        """
        if versions is not None:
            check_versions(versions)
            for tag in versions.given:
                self._version(model, tag)
        text = f"version policy: {versions or 'as the settings say'}"
        return await self._change(model, "core versions", by, text, lambda said: replace(said, versions=versions))

    async def load(self, model: str, version: str, by: Operator) -> Traffic:
        """Load a version, or with "" whatever was unloaded, and wait until it answers.

        Raises:
            NotFound: no such model or version. Unavailable: it could not be loaded, or not in time; says why.
        """
        found = self._version(model, version)
        freed = {found.digest} if version else set(self.said(model).unloaded)

        def change(said: Traffic) -> Traffic:
            return replace(said, unloaded=tuple(digest for digest in said.unloaded if digest not in freed))

        text = f"load: {found.tag or found.digest}" if version else "load"
        after = await self._change(model, "core load", by, text, change)
        self._controller.want(found)
        await self._until(found, is_loaded=True)
        return after

    async def unload(self, model: str, version: str, by: Operator) -> Traffic:
        """Take a version out of memory, or with "" all that there are; wait until what was admitted is answered.

        Raises:
            NotFound: no such model or version. Conflict: a split, a shadow or a pin needs it.
        """
        named = self._version(model, version)
        gone = (named,) if version else (named, *self._registry.versions(model))
        digests = {one.digest for one in gone}
        needed = digests & self.said(model).needed
        if needed:
            names = ", ".join(sorted({one.tag or one.digest for one in gone if one.digest in needed}))
            raise Conflict(f"{names} of {model} is pinned, a shadow or an arm of a split; end that first")

        def change(said: Traffic) -> Traffic:
            return replace(said, unloaded=tuple(sorted({*said.unloaded, *digests})))

        text = f"unloaded: {', '.join(sorted({one.tag or one.digest for one in gone}))}"
        after = await self._change(model, "core unload", by, text, change)
        for one in gone:
            await self._until(one, is_loaded=False)
        return after

    # -- what gates decide -------------------------------------------------------------------------------------------

    async def take(self, model: str, split: Split, step: canary.Step, by: Operator) -> None:
        """Take a step of a split that is still as it was when the step was decided.

        Raises:
            Conflict: it is not, or the default version moves with a rollout only. StorageError: the disk said no.
        """
        match step:
            case canary.Hold():
                return
            case canary.Advance(split=after):
                text = f"split: {after.arms[0].percent:g}% to {after.arms[0].name}"
                await self._change(model, "core split", by, text, in_place_of(split, after))
            case canary.Abort():
                await self._change(model, "core split", by, "split aborted", in_place_of(split, None))
                self.ends[model, "aborted"] += 1
            case canary.Promote(arm=arm):
                await self._promote(model, split, arm, by)
                self.ends[model, "promoted"] += 1
        log(_log, logging.WARNING, "split", model=model, step=type(step).__name__.lower(), reason=by.reason)

    async def freeze(self, model: str, split: Split, slow_s: float) -> None:
        """Keep what is slow for a split, found out from the default version; nobody said it.

        Raises:
            Conflict: it was changed meanwhile. StorageError: the disk said no.
        """
        after = replace(split, gate=replace(split.gate, slow_s=slow_s))
        by = Operator(who="core", reason="twice what the default version's slowest twentieth takes")
        text = f"slow: more than {slow_s:g} s"
        await self._change(model, "core split", by, text, in_place_of(split, after))

    # -- inside ------------------------------------------------------------------------------------------------------

    @uncancelled
    async def _change(self, model: str, command: str, by: Operator, text: str, change: Change) -> Traffic:
        async with self._changing:
            return await self._write(model, command, by, text, change(self.said(model)))

    @uncancelled
    async def _promote(self, model: str, split: Split, arm: Arm, by: Operator) -> None:
        """Make an arm the default version; its split is over then, and not before."""
        async with self._changing:
            after = in_place_of(split, None)(self.said(model))
            await self._actions.set_default(model, arm.digest, by)
            await self._write(model, "core split", by, f"split passed: {arm.name} is the default version", after)

    async def _write(self, model: str, command: str, by: Operator, text: str, after: Traffic) -> Traffic:
        at = self._now().timestamp()
        note = Note(at=at, text=text, who=by.who, reason=by.reason)
        after = replace(after, notes=(*after.notes, note)[-self.settings.max_notes :])
        document = msgspec.json.encode(after).decode()

        def work(transaction: Transaction) -> None:
            rows.write(transaction, model, document, at)

        await self._actions.act(command, f"{model}: {text}"[:512], by, work)
        self._said[model] = after
        if after.split is None:
            self.verdicts.pop(model, None)
        self._steer()
        return after

    def replace(self, settings: TrafficSettings) -> None:
        """Keep to these settings from now on; what operators said goes before them."""
        self.settings, self._policies = settings, version_policies(settings)
        self._steer()

    def _steer(self) -> None:
        effective = {model: replace(said, versions=self.versions_of(model)) for model, said in self._said.items()}
        for model, policy in self._policies.items():
            effective.setdefault(model, Traffic(versions=policy))
        self._controller.steer(effective, Traffic(versions=self.versions_of(EVERY_MODEL)))
        self.news.set()

    def _running(self, model: str) -> Split:
        split = self.said(model).split
        if split is None:
            raise Conflict(f"the requests of {model} are not split")
        return split

    def _arm(self, model: str, version: str, percent: float) -> Arm:
        found = self._other_version(model, version)
        return Arm(name=found.tag or version, digest=found.digest, percent=percent)

    def _other_version(self, model: str, version: str) -> ModelVersion:
        one = self._version(model, version)
        if one.is_default:
            raise Conflict(f"{one.tag or version} is the default version of {model} already: it has what others leave")
        self._controller.demand.check_room(one)
        return one

    def _version(self, model: str, version: str) -> ModelVersion:
        """Find a version that the core can serve."""
        found = self._registry.resolve(model, version)
        self._controller.variant_of(found.digest)
        return found

    async def _until(self, version: ModelVersion, *, is_loaded: bool) -> None:
        await self._controller.reconciled(self.settings.load_s)
        state = self._controller.state_of(version)
        if is_loaded and state.state != "READY":
            raise Unavailable(f"{version.model} {version.tag or version.digest} is not loaded: {state.reason}")
