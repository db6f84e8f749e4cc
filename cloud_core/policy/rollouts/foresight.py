"""Foretells what the gates of a plan would do: how many failures stop or hold a wave, and what its tests can see.

Asks the same arithmetic that ``gates`` decides with, before anything runs, so that an operator sees what a plan is
worth. Assumes that the waves before a wave are healthy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloud_core.policy.rollouts.gate_settings import Gate, alpha_of_pooled, alpha_of_test, audits_needed
from penstock.policy.power import detectable_rate, detectable_share
from penstock.policy.sequential import e_value_above


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveForesight:
    """Says what would stop or hold one wave, and what a pass of it is worth.

    Attributes:
        stopping_failures: fewest failed updates that stop it; None when not even all of them do.
        holding_failures: fewest that make it hold for an operator.
        stops_when_all_revert: it also stops when every device goes back by itself.
        visible_failure_rate: smallest rate of failures that it sees with the chance ``power``; 1 for none.
        audited_rows: audited rows that it needs; 0 where nothing is audited.
        visible_harm: smallest rate of harm that these see with the same chance; 1 for none.
    """

    devices: int
    stopping_failures: int | None
    holding_failures: int
    stops_when_all_revert: bool
    visible_failure_rate: float
    audited_rows: int
    visible_harm: float
    power: float


def foretell(wave_sizes: Sequence[int], gate: Gate, promised_harm: float | None) -> tuple[WaveForesight, ...]:
    """Return what would stop each wave of a plan, the first one first."""
    alpha = alpha_of_test(gate, len(wave_sizes))
    rows = audits_needed(gate, promised_harm, len(wave_sizes)) if promised_harm is not None else 0
    seen = detectable_rate(rows, promised_harm or 0.0, alpha_of_pooled(alpha), gate.power) if rows else 1.0
    found, earlier = [], 0
    for size in wave_sizes:
        found.append(
            WaveForesight(
                devices=size,
                stopping_failures=_stopping(size, earlier, gate, alpha),
                # more than the tolerated share; of this wave, which is never above that of all so far
                holding_failures=math.floor(gate.max_failure_rate * size + 1e-9) + 1,
                stops_when_all_revert=gate.stops_when_all_revert,
                visible_failure_rate=detectable_share(size, gate.max_failure_rate, gate.power),
                audited_rows=rows,
                visible_harm=seen,
                power=gate.power,
            )
        )
        earlier += size
    return tuple(found)


def _stopping(size: int, earlier: int, gate: Gate, alpha: float) -> int | None:
    """Return the fewest failures of a wave whose evidence crosses; it grows with them, so they are found by halving."""
    least, most = 0, size + 1
    while most - least > 1:
        middle = (least + most) // 2
        own = e_value_above(middle, size, gate.max_failure_rate)
        both = e_value_above(middle, size + earlier, gate.max_failure_rate)
        if (own + both) / 2 >= 1 / alpha:
            most = middle
        else:
            least = middle
    return most if most <= size else None
