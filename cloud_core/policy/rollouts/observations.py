"""What is known of the devices of a wave, and how the update of each of them went.

Values and plain functions of them: which outcomes let a wave pass is decided in ``gates``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Phase = Literal["idle", "fetching", "proving", "probation", "committed", "reverted", "failed"]
Outcome = Literal["committed", "failed", "pending", "unreached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known of one device, with regard to the artifact that is rolled out.

    Attributes:
        active_digest: what it runs; "" also when that is the target, but not under the certificate that it should use.
        silent_s: time since its last report, by the server's clock and only while the server was listening.
        audited: audited rows of this artifact since its wave was released.
        audit_harm: the harmful ones among them.
        is_handed: it was told to run the target since its wave was released.
        is_cloud_only: the device's own audit crossed its bound, and it keeps no answer of this artifact any more.
        by_instance: audited and harmful rows of each data directory behind the device's id, where there are several.
        is_duplicated: several agents report under its id: what one of them has reached, another may not have.
    """

    device_id: str
    phase: Phase
    active_digest: str
    failed_digest: str
    silent_s: float
    audited: int
    audit_harm: int
    is_handed: bool = True
    is_cloud_only: bool = False
    error: str = ""
    by_instance: tuple[tuple[int, int], ...] = ()
    is_duplicated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """The devices of one released wave.

    Attributes:
        acknowledged: devices whose failure an operator accepted; it counts no more.
        not_awaited: devices that an operator no longer waits for, while they are unreached.
    """

    released_at: datetime
    observations: tuple[Observation, ...]
    acknowledged: frozenset[str] = frozenset()
    not_awaited: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts failed updates among the devices of one or more waves that were told to update.

    Devices that are not done yet count as not failed. Counting only those with an outcome would be wrong: an update
    fails within seconds and commits only after its probation, so 4 bad devices of 100 would look like 4 of 4. Devices
    that are unreached do not count at all: 4 failures are 4 of 24, also where 1,000 more are switched off.
    """

    failed: int
    devices: int

    @property
    def share(self) -> float:
        """Return the share of devices that failed; 0 where none was told yet."""
        return self.failed / self.devices if self.devices else 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(failed=self.failed + other.failed, devices=self.devices + other.devices)


def outcome_of(device: Observation, target: str, max_silence_s: float, released_at: datetime, now: datetime) -> Outcome:
    """Say how a device's update went."""
    if not device.is_handed:
        return "unreached"  # whatever it does or fails to do, the update is not the cause
    if device.silent_s > max_silence_s:
        return "failed"  # a device that the update bricked never reports a failure
    # one that runs the target although it failed once has recovered: it was asked for a second time
    if device.failed_digest and device.failed_digest == target and device.active_digest != target:
        return "failed"
    # a device that cannot fetch or load tries again by itself: counted at once, a registry that restarts at the wrong
    # moment would stop every rollout
    if device.phase == "failed" and (now - released_at).total_seconds() > max_silence_s:
        return "failed"
    if device.active_digest == target and device.is_cloud_only:
        return "failed"  # it runs, but it does not do what it was rolled out for
    if device.is_duplicated:
        return "pending"  # the report is of one agent, and says nothing of the other
    # "committed" alone is not enough: a device that was not told of the target yet has committed the old version
    if device.active_digest == target and device.phase == "committed":
        return "committed"
    return "pending"


def outcomes_of(wave: Wave, target: str, max_silence_s: float, now: datetime) -> dict[str, Outcome]:
    """Return the outcome of every device of a wave that counts: not of one whose failure was accepted.

    A device whose failure was accepted counts again once it has recovered, and one that nobody waits for counts once it
    was reached.
    """
    found = all_outcomes_of(wave, target, max_silence_s, now)
    return {name: outcome for name, outcome in found.items() if _counts(name, outcome, wave)}


def all_outcomes_of(wave: Wave, target: str, max_silence_s: float, now: datetime) -> dict[str, Outcome]:
    """Return the outcome of every device of a wave, its failure accepted or not."""
    return {d.device_id: outcome_of(d, target, max_silence_s, wave.released_at, now) for d in wave.observations}


def tally(outcomes: Iterable[Outcome]) -> Tally:
    """Count failures among outcomes."""
    counted = [outcome for outcome in outcomes if outcome != "unreached"]
    return Tally(failed=counted.count("failed"), devices=len(counted))


def _counts(device_id: str, outcome: Outcome, wave: Wave) -> bool:
    match outcome:
        case "committed":
            return True
        case "unreached":
            return device_id not in wave.not_awaited
        case "failed" | "pending":
            return device_id not in wave.acknowledged
