"""A device whose every decision is the agent's own: the real ``policy.update`` over the real model state.

What the policy asks for is carried out in memory, in the order in which ``ModelUpdater`` does it (durable state first),
and time is what the caller says. ``state`` is what is on its disk; ``progress`` is lost when its process dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from edge_agent.policy import model_state, update
from edge_agent.policy.model_state import ModelState, Release, Slot
from edge_agent.policy.update import Progress, UpdateLimits

Nature = Literal["good", "lies", "kills_on_load", "kills_in_service", "missing"]

_MAX_FAILURES = 8


def slot_of(release: Release) -> Slot:
    return Slot(
        release=release,
        variant_digest=f"edge of {release.artifact_digest}",
        certificate_digest=release.certificate_digest,
    )


@dataclass
class SimulatedDevice:
    """One model on one device.

    Attributes:
        nature: what an artifact does to this device, by digest; ``good`` where it says nothing.
        fetch_s: how long the next pull takes.
        loads: loads that were begun, by artifact digest.
    """

    limits: UpdateLimits
    nature: Mapping[str, Nature] = field(default_factory=dict)
    fetch_s: Callable[[], float] = lambda: 0.0
    state: ModelState = field(default_factory=lambda: ModelState(model="digits"))
    progress: Progress = field(default_factory=Progress)
    now: float = 0.0
    boot_id: str = "boot 0"
    loads: Counter[str] = field(default_factory=Counter)
    proven: set[str] = field(default_factory=set)
    _arrives_at: float = 0.0

    @property
    def active_digest(self) -> str:
        return self.state.active.release.artifact_digest if self.state.active else ""

    @property
    def serving_digest(self) -> str:
        """What answers now; "" while the process starts."""
        return self.progress.loaded[0] if self.progress.loaded else ""

    def restart(self) -> None:
        """Kill the process and start it again: what is on disk remains."""
        self.state = model_state.begin_boot(self.state, self.boot_id)
        self.progress = Progress(clean_since=self.now, started_at=self.now)

    def desire(self, release: Release) -> None:
        is_new = self.state.desired is None or self.state.desired.key != release.key
        self.state = model_state.desire(self.state, release)
        if is_new:
            self._forget_candidate()

    def run(self, now: float) -> None:
        """Act until there is nothing to do before something else happens."""
        self.now = now
        for _ in range(100):
            if isinstance(self.step(), update.Nothing):
                return
        raise AssertionError(f"it does not come to rest: {self.state} {self.progress}")

    def step(self) -> update.Action:
        """Take one action; a release that kills the process is one that restarts it."""
        if self.progress.fetching is not None and self.now >= self._arrives_at:
            self._end_fetch()
        action = update.plan(self.state, self.progress, self.limits, self.now)
        match action:
            case update.Load(slot=found) | update.Prove(slot=found):
                self._load(found, answers=isinstance(action, update.Load))
            case update.Fetch(release=release):
                self._forget_candidate()
                self._arrives_at = self.now + self.fetch_s()
                self.progress = replace(self.progress, fetching=release.key)
                if self._arrives_at <= self.now:
                    self._end_fetch()
            case update.Activate(slot=found):
                assert found.release.artifact_digest in self.proven, "only what proved itself may answer"
                self.state = model_state.activate(self.state, found)
                self.progress = Progress(loaded=found.key, clean_since=self.now)
                self._serve()
            case update.Commit():
                self.state = model_state.commit(self.state)
            case update.Revert(reason=reason, should_block=should_block):
                self.state = model_state.revert(self.state, reason, limit=_MAX_FAILURES, should_block=should_block)
                self.progress = replace(self.progress, load_failure=None)
            case update.Refuse(release=release, reason=reason):
                self._refuse(release, "reverted", reason)
            case update.Collect():
                self.progress = replace(self.progress, should_collect=False)
            case update.Nothing():
                pass
        return action

    def _end_fetch(self) -> None:
        release = self.state.desired
        assert release is not None
        self.progress = replace(self.progress, fetching=None)
        if self._nature(release) == "missing":
            self._refuse(release, "failed", "404")
        else:
            self.progress = replace(self.progress, fetched=slot_of(release))

    def _load(self, found: Slot, *, answers: bool) -> None:
        self.state = model_state.begin_trial(self.state, found.key, self.boot_id)
        self.loads[found.release.artifact_digest] += 1
        match self._nature(found.release):
            case "kills_on_load":
                self.restart()
            case "lies":
                self.state = model_state.end_trial(self.state, found.key)
                self._refuse(found.release, "reverted", "golden outputs differ")
            case _ if answers:
                self.progress = replace(self.progress, loaded=found.key, clean_since=self.now)
                self.state = model_state.survive(self.state, found.key)
                self._serve()
            case _:
                self.proven.add(found.release.artifact_digest)
                self.progress = replace(self.progress, prepared=found.key)

    def _serve(self) -> None:
        assert self.state.active is not None
        if self._nature(self.state.active.release) == "kills_in_service":
            self.restart()

    def _refuse(self, release: Release, kind: model_state.FailureKind, reason: str) -> None:
        self.state = model_state.fail(self.state, release, kind, reason, limit=_MAX_FAILURES)
        self._forget_candidate()

    def _forget_candidate(self) -> None:
        self.progress = replace(self.progress, fetching=None, fetched=None, prepared=None)

    def _nature(self, release: Release) -> Nature:
        return self.nature.get(release.artifact_digest, "good")
