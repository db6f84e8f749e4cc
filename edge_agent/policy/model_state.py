"""What a device remembers about one model, and how each event changes it: two slots, a trial, failures.

Values and pure transitions only. What to do next is decided in ``edge_agent.policy.update``; keeping states on disk,
also those that an older release wrote, is the work of ``edge_agent.updates.store``. No dates are kept: a device's clock
may be wrong by decades. A block keeps the seconds that passed while the agent ran, and back-off starts from the
beginning at every boot.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.policy import audit as auditing
from edge_agent.policy.audit import Audit

ReleaseKey = tuple[str, str]
"""(artifact digest, certificate digest asked for): another certificate for the same artifact is another release."""

FailureKind = Literal["reverted", "failed"]


class Release(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names what the fleet service asks a device to run.

    Attributes:
        version: the tag, for people.
    """

    version: str
    artifact_digest: str
    certificate_digest: str = ""

    @property
    def key(self) -> ReleaseKey:
        """Return what makes a release another one; the tag does not."""
        return self.artifact_digest, self.certificate_digest


class Slot(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describes a release that is complete on this device.

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
        """Return the key of the release."""
        return self.release.key


class Failure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Remembers a release that failed here.

    Attributes:
        kind: ``reverted`` did not prove itself; ``failed`` could not be fetched or read at all.
        count: how often; from the second time on a new try waits longer.
        is_blocked: it is not tried again until another release was desired in between, the block has passed, or an
            operator says so.
        blocked_s: how long it has been blocked, in seconds during which the agent ran.
    """

    release: Release
    kind: FailureKind
    reason: str
    count: int = msgspec.field(default_factory=lambda: 1)  # these two are always written: earlier releases read them
    is_blocked: bool = msgspec.field(default_factory=lambda: True)
    blocked_s: float = 0.0


class Trial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Counts starts of a release that may kill the process: raised on disk before a load, cleared when healthy.

    Attributes:
        starts: that were begun and did not end well, the open one among them.
        is_open: one is going on; when the next process finds it so, this one died in it.
        boot_id: of the machine when it began. A process that ended with its machine was not killed by a model.
    """

    key: ReleaseKey
    starts: int
    is_open: bool = False
    boot_id: str = ""


class ModelState(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds everything that survives a restart. Each value on disk is a state from which the update loop can go on.

    Attributes:
        active: what runs, or will run after a start.
        previous: the last committed slot before ``active``.
        is_committed: whether ``active`` is out of its probation.
        desired: the newest release that the fleet service asked for; None before the first.
        trials: of ``active`` and ``desired`` at most.
        failures: releases that failed here, oldest first.
        audits: evidence against the promises that were used here, the newest last.
    """

    model: str
    active: Slot | None = None
    previous: Slot | None = None
    is_committed: bool = False
    desired: Release | None = None
    trials: tuple[Trial, ...] = ()
    failures: tuple[Failure, ...] = ()
    audits: tuple[Audit, ...] = ()

    def failure_of(self, release: Release) -> Failure | None:
        """Return the failure of a release; None when it never failed here."""
        return next((failure for failure in self.failures if failure.release.key == release.key), None)

    def starts_of(self, key: ReleaseKey) -> int:
        """Return how many loads of a release were begun and not ended."""
        return next((trial.starts for trial in self.trials if trial.key == key), 0)

    @property
    def is_settled(self) -> bool:
        """Tell whether the device has reached the desired state and needs no watching."""
        return self.active is not None and self.is_committed and self.desired in (None, self.active.release)


def desire(state: ModelState, release: Release) -> ModelState:
    """Take the desired release in; asked for once more, a release changes nothing."""
    # the version counts too, although the key does not have it: a tag that moved gives what runs a new name
    if state.desired and state.desired.key == release.key and state.desired.version == release.version:
        return state
    # v2 failed, v1 is desired, v2 is desired again: somebody wants v2 tried once more. But v2, asked for under another
    # tag while it is blocked, stays blocked: two names must not make a device load and revert it in a loop.
    failures = tuple(
        failure if failure.release.key == release.key else replace(failure, is_blocked=False)
        for failure in state.failures
    )
    # the trial of a release that is no longer desired goes: when it comes back, a crash of then must not count for now
    wanted = (release.key, state.active.key if state.active else None)
    trials = tuple(trial for trial in state.trials if trial.key in wanted)
    return replace(_renamed(state, release), desired=release, failures=failures, trials=trials)


def begin_trial(state: ModelState, key: ReleaseKey, boot_id: str = "") -> ModelState:
    """Count a load that is about to begin; if it kills the process, the count is on disk."""
    if _is_open(state, key):
        return state
    return _with_trial(state, Trial(key=key, starts=state.starts_of(key) + 1, is_open=True, boot_id=boot_id))


def end_trial(state: ModelState, key: ReleaseKey) -> ModelState:
    """Take a start back that ended without killing the process: by an orderly stop or an error."""
    if not _is_open(state, key):
        return state
    return _with_starts(state, key, state.starts_of(key) - 1)


def survive(state: ModelState, key: ReleaseKey) -> ModelState:
    """Take in that a release was loaded and proved itself; one that was committed before has nothing more to show."""
    if state.is_committed and state.active is not None and state.active.key == key:
        return _with_starts(state, key, 0)
    return state


def has_died(state: ModelState, boot_id: str) -> bool:
    """Tell whether the process before died, in this boot of the machine, while a version of this model was on trial."""
    return any(_died(trial, boot_id) for trial in state.trials)


def begin_boot(state: ModelState, boot_id: str, *, counts: bool = True) -> ModelState:
    """Judge the trials that the process before left open: a death counts, the end of the machine does not.

    Args:
        counts: False for a death that may have been another model's (``edge_agent.policy.blame``).
    """
    trials = []
    for trial in state.trials:
        died = counts and _died(trial, boot_id)
        starts = trial.starts - (trial.is_open and not died)
        # without a boot id the count is of a release that took each end of the process for the model's
        if starts > 0 and (trial.boot_id or trial.is_open):
            trials.append(Trial(key=trial.key, starts=starts, boot_id=trial.boot_id))
    return replace(state, trials=tuple(trials))


def age_blocks(state: ModelState, passed_s: float, block_s: float) -> ModelState:
    """Let time pass for what is blocked; a block ends after ``block_s``, doubled with each failure up to 32-fold."""
    if not any(failure.is_blocked for failure in state.failures):
        return state
    return replace(state, failures=tuple(_aged(failure, passed_s, block_s) for failure in state.failures))


def block_left_s(failure: Failure, block_s: float) -> float:
    """Return how long a failure stays blocked; 0 when it is not."""
    return max(0.0, block_s * 2.0 ** min(failure.count - 1, 5) - failure.blocked_s) if failure.is_blocked else 0.0


def unblock(state: ModelState) -> ModelState:
    """Let everything that failed here be tried once more: the word of an operator."""
    failures = tuple(replace(failure, is_blocked=False, blocked_s=0.0, count=1) for failure in state.failures)
    return replace(state, failures=failures, trials=())


def activate(state: ModelState, slot: Slot) -> ModelState:
    """Make a proven slot the active one."""
    # going back to the previous slot: it was committed before and needs no second probation, and it cannot be the way
    # back from itself
    is_return = state.previous is not None and state.previous.key == slot.key
    kept = None if is_return else state.previous
    active = state.active
    if active is not None:
        state = _with_starts(state, active.key, 0)  # it was replaced, it did not crash
        # v1 committed, v2 on probation, v3 arrives: v3 must go back to v1, because v2 never showed that it is healthy.
        # v1 under another certificate is no slot to go back to either: when its weights are at fault, so are these.
        if state.is_committed and active.release.artifact_digest != slot.release.artifact_digest:
            kept = active
    # the same release once more: its bytes rotted and were brought again
    is_repair = active is not None and active.key == slot.key and state.is_committed
    return replace(state, active=slot, previous=kept, is_committed=is_return or is_repair)


def commit(state: ModelState) -> ModelState:
    """Mark the active slot as healthy: its starts are forgotten, and so is that it ever failed."""
    if state.active is None:
        return state
    failures = tuple(f for f in state.failures if f.release.key != state.active.key)
    return replace(_with_starts(state, state.active.key, 0), is_committed=True, failures=failures)


def revert(state: ModelState, reason: str, *, limit: int, should_block: bool = True) -> ModelState:
    """Go back to the previous slot; remember why. Without one a committed slot stays, and any other goes.

    Args:
        limit: failures that are remembered.
        should_block: False when the release is not to blame (its bytes rotted on this disk): it is fetched again.
    """
    if state.active is None or (state.previous is None and state.is_committed):
        return state
    trialled = _with_starts(state, state.active.key, 0)
    # committed: the slot to go back to was committed before. There is none before that one: a device that reverted
    # twice would run a version that was replaced long ago.
    back = replace(trialled, active=state.previous, previous=None, is_committed=True)
    return fail(back, state.active.release, "reverted", reason, limit=limit) if should_block else back


def fail(state: ModelState, release: Release, kind: FailureKind, reason: str, *, limit: int) -> ModelState:
    """Remember a release that must not be tried again until another one was desired; the oldest failure goes."""
    known = state.failure_of(release)
    failure = Failure(release=release, kind=kind, reason=reason, count=known.count + 1 if known else 1)
    others = tuple(f for f in state.failures if f is not known)
    return replace(_with_starts(state, release.key, 0), failures=(*others, failure)[-limit:])


def note_audit(state: ModelState, audit: Audit) -> ModelState:
    """Remember what an audit has found so far."""
    if auditing.find(state.audits, audit.promise) == audit:
        return state
    return replace(state, audits=auditing.kept(state.audits, audit))


def _renamed(state: ModelState, release: Release) -> ModelState:
    """Give what runs its new name: a tag that moved to it is a new name, not a new release."""
    if state.active is None or state.active.key != release.key:
        return state
    return replace(state, active=replace(state.active, release=release))


def _aged(failure: Failure, passed_s: float, block_s: float) -> Failure:
    if not failure.is_blocked:
        return failure
    aged = replace(failure, blocked_s=failure.blocked_s + max(0.0, passed_s))
    return aged if block_left_s(aged, block_s) > 0 else replace(aged, is_blocked=False, blocked_s=0.0)


def _died(trial: Trial, boot_id: str) -> bool:
    return trial.is_open and trial.boot_id != "" and trial.boot_id == boot_id


def _is_open(state: ModelState, key: ReleaseKey) -> bool:
    return any(trial.key == key and trial.is_open for trial in state.trials)


def _with_starts(state: ModelState, key: ReleaseKey, starts: int) -> ModelState:
    boot_id = next((trial.boot_id for trial in state.trials if trial.key == key), "")
    return _with_trial(state, Trial(key=key, starts=starts, boot_id=boot_id))


def _with_trial(state: ModelState, changed: Trial) -> ModelState:
    others = tuple(trial for trial in state.trials if trial.key != changed.key)
    return replace(state, trials=(*others, changed) if changed.starts > 0 else others)
