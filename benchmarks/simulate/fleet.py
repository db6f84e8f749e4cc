"""The fleet's audits together: minutes until a drift is seen by 10,000 devices with 14 audits a day each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cloud_core.policy.rollouts.fleet_evidence import (
    DeviceEvidence,
    Limits,
    after_round,
    fleet_strength,
    is_round_over,
    noted,
    without_vote,
)
from penstock.policy.change_detection import FRESH, Evidence

BOUND = 0.02
LIMITS = Limits(run_length=1e6, min_devices=8, round_s=86400.0)
_DEVICES = 10_000
_AUDITS_A_DAY = 14
_HEAVY_ROWS = 1_000_000
_RUNS = 5
_MOST_AUDITS = 1_000_000


@dataclass
class Fleet:
    """One promise, and what all devices say about it, as the core keeps it."""

    devices: dict[int, DeviceEvidence] = field(default_factory=dict)
    rounds: Evidence = FRESH
    votes: set[int] = field(default_factory=set)
    has_alarmed: bool = False

    def take(self, device: int, audited: int, harm: int) -> None:
        """Take in what a device delivers."""
        known = self.devices.get(device, DeviceEvidence(bound=BOUND))
        self.devices[device] = noted(known, audited=audited, harm=harm)
        self.votes.add(device)
        if is_round_over(votes=len(self.votes), devices=len(self.devices), lasted_s=0.0, limits=LIMITS):
            self.rounds = after_round(self.rounds, [[self.devices[name]] for name in sorted(self.votes)])
            for name in self.votes:
                self.devices[name] = without_vote(self.devices[name])
            self.votes.clear()
            strong = fleet_strength(self.rounds, [[one] for one in self.devices.values()], LIMITS)
            self.has_alarmed = strong >= LIMITS.run_length


def table() -> str:
    """Let fleets drift after a healthy week, with and without a device that floods, and say when it is seen."""
    random = np.random.default_rng(23)
    a_minute = _DEVICES * _AUDITS_A_DAY / 1440
    lines = [
        f"{_DEVICES:,} devices, {_AUDITS_A_DAY} audits a day each, bound {BOUND:.0%}, run length "
        f"{LIMITS.run_length:,.0f} votes; minutes until the drift is seen, median of {_RUNS}:",
        "",
        "| a fleet | 2x harm | 3x harm | 10x harm |",
        "|---|---|---|---|",
    ]
    for name, is_flooded in (("as it is", False), ("one device adds 10^6 healthy rows to each round", True)):
        cells = []
        for multiple in (2, 3, 10):
            waits = [
                _audits_until_seen(multiple * BOUND, random, is_flooded=is_flooded) / a_minute for _ in range(_RUNS)
            ]
            cells.append(f"{np.median(waits):.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", _false_alarms(random)]
    return "\n".join(lines)


def _healthy(random: np.random.Generator, audits: int, rate: float) -> tuple[Fleet, int]:
    """Run a fleet at a rate; return it, and how often it raised an alarm."""
    fleet, alarms = Fleet(), 0
    for device, is_harm in zip(random.integers(0, _DEVICES, audits), random.random(audits) < rate, strict=True):
        fleet.take(int(device), 1, int(is_harm))
        if fleet.has_alarmed:
            alarms += 1
            fleet = Fleet()
    return fleet, alarms


def _audits_until_seen(rate: float, random: np.random.Generator, *, is_flooded: bool) -> int:
    fleet, _ = _healthy(random, 20_000, BOUND / 2)
    for number in range(1, _MOST_AUDITS):
        fleet.take(int(random.integers(0, _DEVICES)), 1, int(random.random() < rate))
        if is_flooded and number % 100 == 0:
            fleet.take(0, _HEAVY_ROWS, 0)
        if fleet.has_alarmed:
            return number
    return _MOST_AUDITS


def _false_alarms(random: np.random.Generator) -> str:
    audits = 300_000
    _, alarms = _healthy(random, audits, BOUND)
    forged, liar = Fleet(), 1
    for device in random.integers(0, 100, 20_000):
        forged.take(
            int(device), 1000 if device == liar else 1, 1000 if device == liar else int(random.random() < BOUND / 2)
        )
        if forged.has_alarmed:
            break
    said = "raises an alarm" if forged.has_alarmed else "raises no alarm"
    return (
        f"At the bound: {alarms} false alarms in {audits:,} audits. One device of 100 that claims harm in every row, "
        f"over 20,000 deliveries, {said}."
    )
