"""What a device remembers about one model, and how each event changes it: two slots, a trial, failures.

Values and pure transitions only. What to do next is ``edge_agent.policy.update``; keeping it on disk is
``edge_agent.updates.store``. No times are kept: a device's clock may be wrong by decades, and back-off starts afresh at
boot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ReleaseKey = tuple[str, str]
"""(artifact digest, certificate digest asked for): another certificate for the same artifact is another release."""

FailureKind = Literal["reverted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What the fleet service asks a device to run. ``version`` is the tag, for people."""

    version: str
    artifact_digest: str
    certificate_digest: str = ""

    @property
    def key(self) -> ReleaseKey:
        return self.artifact_digest, self.certificate_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A release that is complete on this device.

    Attributes:
        variant_digest: manifest digest of the edge variant that this device runs.
        certificate_digest: manifest digest of a certificate issued for exactly that variant; "" when none is.
        note: why there is none, for people.
        signature_digests: manifest digests of the artifact's signatures, where this device has a trust root.
    """

    release: Release
    variant_digest: str
    certificate_digest: str = ""
    note: str = ""
    signature_digests: tuple[str, ...] = ()

    @property
    def key(self) -> ReleaseKey:
        return self.release.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A release that failed here. It is not tried again while ``is_blocked``: until another one was asked for.

    Attributes:
        kind: ``reverted`` did not prove itself; ``failed`` could not be fetched or read at all.
        count: how often; from the second time on a new try waits longer.
    """

    release: Release
    kind: FailureKind
    reason: str
    count: int = 1
    is_blocked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Counts starts of a release that may kill the process: raised on disk before a load, cleared when healthy."""

    key: ReleaseKey
    starts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Everything that survives a restart. Each value on disk is a state from which the update loop can go on.

    Attributes:
        active: what runs, or will run after a start. ``previous``: the last committed one before it.
        is_committed: whether ``active`` is out of its probation.
        desired: the newest wish that was heard; None before the first.
        trials: of ``active`` and ``desired`` at most.
    """

    model: str
    active: Slot | None = None
    previous: Slot | None = None
    is_committed: bool = False
    desired: Release | None = None
    trials: tuple[Trial, ...] = ()
    failures: tuple[Failure, ...] = ()

    def failure_of(self, release: Release) -> Failure | None:
        return next((failure for failure in self.failures if failure.release.key == release.key), None)

    def starts_of(self, key: ReleaseKey) -> int:
        return next((trial.starts for trial in self.trials if trial.key == key), 0)

    @property
    def is_settled(self) -> bool:
        """Whether what runs is what is wanted, for good."""
        return self.active is not None and self.is_committed and self.desired in (None, self.active.release)


def desire(state: ModelState, release: Release) -> ModelState:
    """A wish arrived. Releases that failed before and are not this one may be tried again when they are asked for."""
    if state.desired and state.desired.key == release.key and state.desired.version == release.version:
        return state
    failures = tuple(
        failure if failure.release.key == release.key else replace(failure, is_blocked=False)
        for failure in state.failures
    )
    wanted = (release.key, state.active.key if state.active else None)
    trials = tuple(trial for trial in state.trials if trial.key in wanted)
    return replace(_renamed(state, release), desired=release, failures=failures, trials=trials)


def begin_trial(state: ModelState, key: ReleaseKey) -> ModelState:
    """The release ``key`` is about to be loaded; if it kills the process, the count remains."""
    return _with_starts(state, key, state.starts_of(key) + 1)


def end_trial(state: ModelState, key: ReleaseKey) -> ModelState:
    """It ended without killing the process (an orderly stop, an error): take this start back."""
    return _with_starts(state, key, state.starts_of(key) - 1)


def activate(state: ModelState, slot: Slot) -> ModelState:
    """Make a proven slot the active one. The previous slot is always one that was committed, of another artifact.

    Going back to the previous slot needs no second probation.
    """
    is_return = state.previous is not None and state.previous.key == slot.key
    kept = None if is_return else state.previous
    active = state.active
    if active is not None:
        state = _with_starts(state, active.key, 0)  # it was replaced, it did not crash
        if state.is_committed and active.release.artifact_digest != slot.release.artifact_digest:
            kept = active
    return replace(state, active=slot, previous=kept, is_committed=is_return)


def commit(state: ModelState) -> ModelState:
    """The active slot is healthy: it is committed, its starts are forgotten, and so is that it ever failed."""
    if state.active is None:
        return state
    failures = tuple(f for f in state.failures if f.release.key != state.active.key)
    return replace(_with_starts(state, state.active.key, 0), is_committed=True, failures=failures)


def revert(state: ModelState, reason: str, *, limit: int, should_block: bool = True) -> ModelState:
    """Go back to the previous slot, or to none; remember why.

    Args:
        should_block: False when the release is not to blame (its bytes rotted on this disk): it is fetched again.
    """
    if state.active is None:
        return state
    trialled = _with_starts(state, state.active.key, 0)
    back = replace(trialled, active=state.previous, previous=None, is_committed=True)
    return fail(back, state.active.release, "reverted", reason, limit=limit) if should_block else back


def fail(state: ModelState, release: Release, kind: FailureKind, reason: str, *, limit: int) -> ModelState:
    """Remember a release that must not be tried again until another one was asked for; the oldest is forgotten."""
    known = state.failure_of(release)
    failure = Failure(release=release, kind=kind, reason=reason, count=known.count + 1 if known else 1)
    others = tuple(f for f in state.failures if f is not known)
    return replace(_with_starts(state, release.key, 0), failures=(*others, failure)[-limit:])


def _renamed(state: ModelState, release: Release) -> ModelState:
    """A tag that moved to what already runs is a new name, not a new release."""
    if state.active is None or state.active.key != release.key:
        return state
    return replace(state, active=replace(state.active, release=release))


def _with_starts(state: ModelState, key: ReleaseKey, starts: int) -> ModelState:
    others = tuple(trial for trial in state.trials if trial.key != key)
    return replace(state, trials=(*others, Trial(key=key, starts=starts)) if starts > 0 else others)
