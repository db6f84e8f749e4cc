"""A device's audit: false alarms at the bound, and audits until a change is seen, by how long all was well before."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from penstock.policy.change_detection import ALTERNATIVES, log_ratios

BOUND = 0.02
RUN_LENGTH = 1e6
AGES = (0, 1_000, 10_000, 100_000, 1_000_000)
MULTIPLES = (2, 3, 10)
_DEVICES = 200
_LOOKS = 100_000  # longest wait for a change to be seen

Floats = NDArray[np.float64]


def table() -> str:
    """Run devices at the bound, then change the rate at several ages; return what was seen as Markdown."""
    random = np.random.default_rng(22)
    # healthy devices are worst: their rate is exactly at the bound
    state, alarms, snapshots = np.zeros((_DEVICES, len(ALTERNATIVES))), 0, {}
    for number in range(max(AGES) + 1):
        if number in AGES:
            snapshots[number] = state.copy()
        state = _after(state, random.random(_DEVICES) < BOUND)
        crossed = state.mean(axis=1) >= RUN_LENGTH
        alarms += int(crossed.sum())
        state[crossed] = 0.0
    lines = [
        f"Bound {BOUND:.0%}, run length {RUN_LENGTH:,.0f} audits, {_DEVICES} devices at the bound: "
        f"{alarms / (_DEVICES * max(AGES) / 1e6):.2f} false alarms in 10^6 audits. Audits until a change is seen, "
        "median (90% of the devices):",
        "",
        "| audits before the change | " + " | ".join(f"{multiple}x harm" for multiple in MULTIPLES) + " |",
        "|---" * (1 + len(MULTIPLES)) + "|",
    ]
    for age in AGES:
        seen = [_waits(snapshots[age], multiple * BOUND, random) for multiple in MULTIPLES]
        cells = [f"{np.median(waits):,.0f} ({np.quantile(waits, 0.9):,.0f})" for waits in seen]
        lines.append(f"| {age:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _waits(state: Floats, rate: float, random: np.random.Generator) -> Floats:
    waits = np.full(_DEVICES, math.inf)
    for number in range(1, _LOOKS + 1):
        state = _after(state, random.random(_DEVICES) < rate)
        waits[(state.mean(axis=1) >= RUN_LENGTH) & np.isinf(waits)] = number
        if not np.isinf(waits).any():
            break
        state = np.minimum(state, 1e290)  # devices that have crossed go on until all have
    return waits


_UP, _DOWN = (np.exp(column) for column in np.array(log_ratios(BOUND)).T)


def _after(state: Floats, is_harm: NDArray[np.bool_]) -> Floats:
    """Take one outcome of every device in: ``change_detection.updated`` for many devices at once."""
    return np.asarray((state + 1.0) * np.where(is_harm[:, None], _UP, _DOWN))
