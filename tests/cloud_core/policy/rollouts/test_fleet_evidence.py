"""Audits of a fleet: what all see is seen early, and no single device decides, hides or alarms."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from cloud_core.policy.rollouts.fleet_evidence import (
    DeviceEvidence,
    Limits,
    after_round,
    fleet_strength,
    is_round_over,
    noted,
    without_vote,
)
from penstock.policy.change_detection import FRESH, Evidence, strength

BOUND = 0.02
LIMITS = Limits(run_length=1e6, min_devices=8, round_s=86400.0)


@dataclass
class Pool:
    """What the shell keeps."""

    devices: dict[int, DeviceEvidence] = field(default_factory=dict)
    rounds: Evidence = FRESH

    def take(self, device: int, audited: int, harm: int) -> None:
        known = self.devices.get(device, DeviceEvidence(bound=BOUND))
        self.devices[device] = noted(known, audited=audited, harm=harm)
        voted = [one for one in self.devices.values() if one.vote_audited]
        if is_round_over(votes=len(voted), devices=len(self.devices), lasted_s=0.0, limits=LIMITS):
            self.rounds = after_round(self.rounds, [[one] for one in voted])
            self.devices = {name: without_vote(one) for name, one in self.devices.items()}

    @property
    def has_alarm(self) -> bool:
        return fleet_strength(self.rounds, [[one] for one in self.devices.values()], LIMITS) >= LIMITS.run_length


def run(pool: Pool, rate: float, audits: int, rng: random.Random, devices: int = 40) -> int:
    """Let devices audit one row each time; return after how many the alarm came."""
    for number in range(1, audits + 1):
        pool.take(rng.randrange(devices), 1, int(rng.random() < rate))
        if pool.has_alarm:
            return number
    return audits + 1


def test_a_drift_is_seen_by_all_together_long_before_one_device_alone_could() -> None:
    rng, pool = random.Random(1), Pool()
    assert run(pool, BOUND / 2, 3_000, rng) == 3_001
    assert run(pool, 10 * BOUND, 400, rng) <= 400  # ten audits a device, where one alone needs forty


def test_one_heavy_healthy_device_and_one_forged_record_hide_nothing() -> None:
    rng, pool = random.Random(2), Pool()
    pool.take(0, 10**6, 0)
    for _ in range(20):
        pool.take(0, 10**6, 0)
        if run(pool, 10 * BOUND, 40, rng) <= 40:
            return
    pytest.fail("a device with millions of healthy rows hid what all others see")


def test_one_device_alone_raises_no_alarm_whatever_it_claims() -> None:
    rng, pool = random.Random(3), Pool()
    for _ in range(3_000):
        pool.take(0, 10**6, 10**6)
        pool.take(rng.randrange(1, 40), 1, int(rng.random() < BOUND / 4))
        assert not pool.has_alarm
    assert strength(pool.devices[0].evidence) > LIMITS.run_length


def test_a_drift_on_a_third_of_the_devices_is_seen_although_most_are_healthy() -> None:
    rng, pool = random.Random(4), Pool()
    for _ in range(120):
        for device in range(40):
            pool.take(device, 5, sum(rng.random() < (0.3 if device < 13 else 0.001) for _ in range(5)))
        if pool.has_alarm:
            return
    pytest.fail("never seen")


def test_too_few_devices_are_left_to_their_own_audits() -> None:
    pool = Pool()
    for number in range(700):
        pool.take(number % (LIMITS.min_devices - 1), 1, 1)
    assert not pool.has_alarm


@pytest.mark.parametrize(
    ("votes", "devices", "lasted_s", "is_over"),
    [(7, 7, 1e9, False), (8, 16, 0, True), (8, 17, 0, False), (8, 1000, 86400, True), (500, 10**6, 0, True)],
)
def test_when_a_round_is_over(votes: int, devices: int, lasted_s: float, is_over: bool) -> None:
    assert is_round_over(votes=votes, devices=devices, lasted_s=lasted_s, limits=LIMITS) is is_over


def test_false_alarms_at_the_bound_are_as_rare_as_promised() -> None:
    limits, rng, alarms, votes = Limits(run_length=500, min_devices=8, round_s=1e9), random.Random(5), 0, 0
    rounds, devices = FRESH, [DeviceEvidence(bound=BOUND)] * 16
    for _ in range(2_000):
        devices = [noted(one, audited=1, harm=int(rng.random() < BOUND)) for one in devices]
        votes += len(devices)
        rounds = after_round(rounds, [[one] for one in devices])
        devices = [without_vote(one) for one in devices]
        if fleet_strength(rounds, [[one] for one in devices], limits) >= limits.run_length:
            alarms, rounds, devices = alarms + 1, FRESH, [DeviceEvidence(bound=BOUND)] * 16
    assert alarms <= votes / limits.run_length
