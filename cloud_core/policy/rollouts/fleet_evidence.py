"""Does the fleet as a whole see more harm than a certificate promises? Audits of all devices, one vote a device.

A device needs days to see a drift that thousands of devices see within minutes together. Two e-detectors
(``penstock.policy.change_detection``) watch each promise, and their mean decides:

- *rounds*: once enough devices have audited something, each of them votes with its share of harmful rows, whatever
  number of rows that share is of. The factor of the vote that speaks most against the promise is left out.
- *devices*: the mean of what each device's own audits say (a mean of e-values is an e-value), with a limit for each.

Where a data directory was copied, several instances stand behind one device: each has evidence of its own, and the mean
of their factors is the device's vote (a mean of e-values is an e-value).

So neither a device with a million healthy rows nor a forged record hides what the others see, and no single device
raises an alarm. Decides from values; keeps none (``cloud_core.fleet.evidence`` does).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from penstock.policy.change_detection import FRESH, LARGEST, Evidence, log_factor, strength, updated

MOST_VOTES = 500
"""A round of a large fleet ends with that many votes: more would only delay the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Says when the fleet has seen enough.

    Attributes:
        run_length: votes until a false alarm, on average and at the least.
        min_devices: votes that a round has at the least, and devices that an alarm needs at the least.
        round_s: a round that long ends although half of the devices have not voted.
    """

    run_length: float
    min_devices: int
    round_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvidence:
    """Holds what the audits of one instance of a device say about one promise.

    Attributes:
        bound: share of audited rows that may be harmful, at the level that the device uses.
        evidence: of the device alone.
        audited: rows since the promise was made, and ``harm`` of them harmful: for people.
        vote_audited: rows since the round began, and ``vote_harm`` of them harmful; 0 is no vote yet.
    """

    bound: float
    evidence: Evidence = FRESH
    audited: int = 0
    harm: int = 0
    vote_audited: int = 0
    vote_harm: int = 0


def noted(device: DeviceEvidence, *, audited: int, harm: int) -> DeviceEvidence:
    """Take rows in that a device audited."""
    return replace(
        device,
        evidence=updated(device.evidence, harm=harm, n=audited, bound=device.bound),
        audited=device.audited + audited,
        harm=device.harm + harm,
        vote_audited=device.vote_audited + audited,
        vote_harm=device.vote_harm + harm,
    )


def without_vote(device: DeviceEvidence) -> DeviceEvidence:
    """Begin a round: nothing was audited in it yet."""
    return replace(device, vote_audited=0, vote_harm=0)


def is_round_over(*, votes: int, devices: int, lasted_s: float, limits: Limits) -> bool:
    """Say whether a round ends: with the votes of half of the devices, or after its time."""
    if votes < limits.min_devices:
        return False
    return votes >= min(MOST_VOTES, math.ceil(devices / 2)) or lasted_s >= limits.round_s


def after_round(rounds: Evidence, votes: Iterable[Sequence[DeviceEvidence]]) -> Evidence:
    """Take the votes of a round in, each by its instances: one start for each vote, all of them before the first."""
    factors = [found for vote in votes if (found := _factors(vote))]
    if not factors:
        return rounds
    return tuple(
        _grown(before + len(factors), column) for before, column in zip(rounds, zip(*factors, strict=True), strict=True)
    )


def fleet_strength(rounds: Evidence, devices: Sequence[Sequence[DeviceEvidence]], limits: Limits) -> float:
    """Return the evidence of the whole fleet, each device by its instances, to be compared with the run length."""
    if not devices:
        return 0.0
    # at the limit, ``min_devices`` of them are needed to reach the run length
    most = limits.run_length * len(devices) / limits.min_devices
    mean = math.fsum(min(_own_strength(device), most) for device in devices) / len(devices)
    return (strength(rounds) + mean) / 2


def _own_strength(device: Sequence[DeviceEvidence]) -> float:
    return math.fsum(strength(one.evidence) for one in device) / len(device) if device else 0.0


def _factors(vote: Sequence[DeviceEvidence]) -> tuple[float, ...]:
    """Return the logarithms that a device multiplies by; none where nothing was audited."""
    found = [
        log_factor(one.vote_harm / one.vote_audited, one.bound) for one in vote if one.vote_audited and one.bound < 1
    ]
    return found[0] if len(found) == 1 else tuple(_log_mean(column) for column in zip(*found, strict=True))


def _log_mean(logarithms: Sequence[float]) -> float:
    most = max(logarithms)
    return most + math.log(math.fsum(math.exp(one - most) for one in logarithms) / len(logarithms))


def _grown(starts: float, column: Sequence[float]) -> float:
    logarithm = math.log(starts) + math.fsum(column) - max(0.0, *column)
    return LARGEST if logarithm >= math.log(LARGEST) else math.exp(logarithm)
