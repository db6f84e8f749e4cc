"""Decides the one next step that brings a model from what runs to what is wanted: ``plan(state, progress, now)``.

A short-circuit priority list over values; level-triggered, so that planning again after a crash continues where the
state on disk stands. Does nothing itself and reads no clock: ``edge_agent.updates.model_updater`` acts, and says what
came of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.policy.model_state import ModelState, Release, ReleaseKey, Slot, block_left_s


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLimits:
    """Holds the limits that ``edge_agent.settings.UpdateSettings`` explains."""

    probation_s: float
    probation_requests: int
    max_crashes: int
    patience: int
    block_s: float = 86_400.0
    retry_max_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailure:
    """Says why the active slot could not be loaded.

    Attributes:
        is_damaged: its bytes on this disk are gone or changed.
    """

    reason: str
    is_damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Holds what is true only while this process runs. Times are on the clock of ``now``.

    Attributes:
        loaded: what answers requests.
        started_at: when this process began with the model.
        fetching: what is being pulled.
        fetched: what is complete on disk and not loaded yet.
        prepared: what was proven and is in memory, but not switched to.
        damaged: what of the loaded slot could not be read, for people; "" when all of it could.
        load_failure: why the last try to load the active slot failed; None when it did not.
        load_attempts: tries to load the active slot that failed in a row.
        load_retry_at: when to try that again.
        failed_attempts: tries of the desired release that failed in a row.
        retry_at: when to try that again.
        error: why the last of them failed, for people.
        is_hard: that failure deserves attention at once (disk full), not only when it persists.
        failures: crashes and failed requests of the active slot since it was loaded.
        clean_since: since when it ran without a failure.
        clean_requests: for how many rows it ran without a failure.
        should_collect: blobs may have become unreferenced.
    """

    loaded: ReleaseKey | None = None
    fetching: ReleaseKey | None = None
    fetched: Slot | None = None
    prepared: ReleaseKey | None = None
    started_at: float = 0.0
    damaged: str = ""
    load_failure: LoadFailure | None = None
    load_attempts: int = 0
    load_retry_at: float = 0.0
    failed_attempts: int = 0
    retry_at: float = 0.0
    error: str = ""
    is_hard: bool = False
    failures: int = 0
    clean_since: float = 0.0
    clean_requests: int = 0
    should_collect: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load the active slot and answer with it: at start, and after a revert."""

    slot: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Begin or continue pulling a release."""

    release: Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """Load a fetched slot beside the running one and replay its golden inputs."""

    slot: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """Switch to a proven slot."""

    slot: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Mark the active slot as healthy: it came through its probation."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Revert:
    """Go back to the previous slot.

    Attributes:
        should_block: do not try this release again before its block has ended.
    """

    reason: str
    should_block: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Block the desired release (``edge_agent.policy.model_state.Failure``); what runs goes on."""

    release: Release
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Delete blobs that no slot needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """Do nothing; look again at ``wake_at``, or when something happens."""

    reason: str
    wake_at: float | None = None


Action = Load | Fetch | Prove | Activate | Commit | Revert | Refuse | Collect | Nothing
Phase = Literal["idle", "fetching", "proving", "probation", "committed", "reverted", "failed"]
Severity = Literal["wait", "failed", "final"]

_WAIT = frozenset({"unavailable", "deadline-exceeded", "queue-full", "memory-full", "quota-exceeded"})


def plan(state: ModelState, progress: Progress, limits: UpdateLimits, now: float) -> Action:
    """Return the next step. Serving comes first, then trust in what serves, then the next release, then collecting."""
    steps = [decide(state, progress, limits, now) for decide in (_serve, _judge, _pursue)]
    for step in steps:
        if not isinstance(step, Nothing):
            return step
    # not during a pull: a manifest that is not here yet cannot protect its layers, which are
    if progress.should_collect and progress.fetching is None:
        return Collect()
    idle = [step for step in steps if isinstance(step, Nothing)]
    wakes = [step.wake_at for step in idle if step.wake_at is not None]
    return Nothing(reason="; ".join(step.reason for step in idle if step.reason), wake_at=min(wakes) if wakes else None)


def is_watched(state: ModelState, progress: Progress) -> bool:
    """Tell whether what runs still has to show that it is healthy."""
    active = state.active
    if active is None or progress.loaded != active.key:
        return False
    # also a committed one, for as long as its start is on trial: a file that rotted may kill the process at every boot
    return not state.is_committed or state.starts_of(active.key) > 0


def severity(code: str, *, is_fixed: bool) -> Severity:
    """Return what an error code (``penstock.errors``) means for a release that is being fetched.

    ``wait`` is an outage, which nothing is to blame for yet. ``failed`` is reported, and tried again: what another try
    brings may be right (a registry that is being restored answers 404, a proxy sends a page of its own). ``final`` is
    not tried again: it would only fail again.

    Args:
        is_fixed: it follows from bytes that hash to the digest that was asked for.
    """
    if is_fixed:
        return "final"
    return "wait" if code in _WAIT else "failed"


def phase(state: ModelState, progress: Progress, limits: UpdateLimits) -> tuple[Phase, str]:
    """Return what to report: the phase, and an error for people ("" when there is none)."""
    desired = state.desired
    if desired is None or (state.active and state.active.key == desired.key):
        return _resting_phase(state, progress, limits)
    failure = state.failure_of(desired)
    # before "fetching": a device that gave up must not look as if it were still on its way
    if failure and failure.is_blocked:
        return ("reverted" if failure.kind == "reverted" else "failed"), failure.reason
    if progress.failed_attempts and (progress.is_hard or progress.failed_attempts >= limits.patience):
        return "failed", progress.error
    if progress.prepared == desired.key or (progress.fetched and progress.fetched.key == desired.key):
        return "proving", progress.error
    return "fetching", progress.error


def _resting_phase(state: ModelState, progress: Progress, limits: UpdateLimits) -> tuple[Phase, str]:
    if state.active is None:
        return "idle", ""
    if progress.load_failure is not None:
        return "failed", progress.load_failure.reason
    starts = state.starts_of(state.active.key)
    if progress.loaded is None and starts >= limits.max_crashes:
        return "failed", f"{starts} starts with it did not survive; there is no earlier version to go back to"
    if state.is_committed:
        return "committed", progress.damaged or state.active.note
    if progress.failures >= limits.max_crashes:
        return "failed", f"{_failures(progress)}; there is no earlier version to go back to"
    return "probation", state.active.note


def _serve(state: ModelState, progress: Progress, limits: UpdateLimits, now: float) -> Action:
    """Bring up the active slot, or go back to the one before it."""
    if state.active is None or progress.loaded == state.active.key:
        return Nothing(reason="")
    starts = state.starts_of(state.active.key)
    # looked at before the load, not after it: this process may be the next that does not survive
    if starts >= limits.max_crashes:
        if state.previous is not None or not state.is_committed:
            return Revert(reason=f"{starts} starts with it did not survive", should_block=True)
        # nothing to go back to: it is tried again, later each time, so that the other models of this device can work
        pause_s = min(2.0 ** min(starts, 30), limits.retry_max_s)
        if progress.load_failure is None and now < progress.started_at + pause_s:
            reason = f"{starts} starts with it did not survive; there is no earlier version to go back to"
            return Nothing(reason=reason, wake_at=progress.started_at + pause_s)
    broken = progress.load_failure
    if broken is None:
        return Load(slot=state.active)
    # the release is not to blame for bytes that rotted here: blocked, it would not be fetched again, and the device
    # would stay on the older version
    if broken.is_damaged and state.previous is not None:
        return Revert(reason=broken.reason, should_block=False)
    # with nothing to go back to, a revert would leave the device with no model at all: it tries again instead
    if state.previous is not None:
        return Revert(reason=broken.reason, should_block=True)
    if now >= progress.load_retry_at:
        return Load(slot=state.active)
    return Nothing(reason=broken.reason, wake_at=progress.load_retry_at)


def _judge(state: ModelState, progress: Progress, limits: UpdateLimits, now: float) -> Action:
    """Decide about trust in the active slot: a probation, and for a committed one that it survives being loaded."""
    if not is_watched(state, progress):
        return Nothing(reason="")
    # a committed version is not reverted for failures: they are then more likely the requests' or the device's, and the
    # previous version would fail in the same way. Neither is the first version of all: it is better than none.
    if not state.is_committed and state.previous and progress.failures >= limits.max_crashes:
        return Revert(reason=_failures(progress), should_block=True)
    if progress.clean_requests >= limits.probation_requests:
        return Commit(reason=f"{progress.clean_requests} rows without a failure")
    ends_at = progress.clean_since + limits.probation_s
    if now >= ends_at:
        return Commit(reason=f"{limits.probation_s:g} s without a failure")
    return Nothing(reason="on probation", wake_at=ends_at)


def _pursue(state: ModelState, progress: Progress, limits: UpdateLimits, now: float) -> Action:
    """Go one step from what runs towards what is desired."""
    desired = wanted(state, progress)
    if desired is None:
        return Nothing(reason="")
    failure = state.failure_of(desired)
    if failure and failure.is_blocked:
        left_s = block_left_s(failure, limits.block_s)
        return Nothing(reason=f"{desired.version} failed here: {failure.reason}", wake_at=now + left_s)
    if now < progress.retry_at:
        return Nothing(reason=f"trying again: {progress.error}", wake_at=progress.retry_at)
    if progress.fetched is None or progress.fetched.key != desired.key:
        if progress.fetching == desired.key:
            return Nothing(reason="fetching")
        return Fetch(release=desired)
    # before the starts are looked at: the last start allowed is still on trial, and has just survived
    if progress.prepared == desired.key:
        return Activate(slot=progress.fetched)
    # a release that kills the process while it is proven comes here again at every boot, with one start more
    starts = state.starts_of(desired.key)
    if starts >= limits.max_crashes:
        return Refuse(release=desired, reason=f"{starts} attempts to load it did not survive")
    return Prove(slot=progress.fetched)


def wanted(state: ModelState, progress: Progress) -> Release | None:
    """Return the release to bring here; None when there is none to bring.

    It is the desired one where another runs. Where what should run is damaged and there is none to go back to, or what
    runs was loaded without what is damaged of it, its bytes are brought once more.
    """
    active, desired = state.active, state.desired
    if active is None:
        return desired
    if desired is not None and desired.key != active.key:
        failure = state.failure_of(desired)
        if failure is None or not failure.is_blocked or not _is_damaged(progress):
            return desired
    return active.release if _is_damaged(progress) else None


def _is_damaged(progress: Progress) -> bool:
    return progress.damaged != "" or (progress.load_failure is not None and progress.load_failure.is_damaged)


def _failures(progress: Progress) -> str:
    return f"{progress.failures} failures on probation"
