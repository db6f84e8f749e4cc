"""What a rollout's gate is set to: its error budget, its limits, and how many audited rows a wave needs.

Values and plain functions of them; the tests that they are the settings of are in ``gates``.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import InvalidInput
from penstock.policy.power import rows_needed

_MAX_RATIO = 1000
_SEQUENTIAL_TESTS = 2
_SMALLEST_PROMISE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Settings of the tests: what a wave must show.

    Attributes:
        alpha: error budget of a rollout: the chance that any sequential test of any wave ever stops one that keeps its
            promises.
        max_failure_rate: tolerated share of devices that fail to update.
        min_audited: audited rows a wave needs to pass, when the artifact has a certificate; None for as many as see
            ``detectable_ratio`` times the promised harm with the chance ``power``.
        bake_s: shortest time a wave runs.
        max_silence_s: a device that was told to update and is silent for longer counts as failed.
        max_wave_s: a wave that has not passed by then pauses the rollout.
        max_unreached_s: how long a wave waits for devices that did not come by to be told.
        max_unreached_rate: share of a wave that may be unreached when it passes.
        detectable_ratio: how many times the promised harm the audited rows of a wave have to be able to see.
        power: chance with which the audited rows of a wave have to see that much harm.
        stops_when_all_revert: a wave of which every device took the version and went back by itself stops the rollout,
            also when it is a single device; it holds otherwise.
    """

    alpha: float
    max_failure_rate: float
    min_audited: int | None
    bake_s: float
    max_silence_s: float
    max_wave_s: float
    # with values, because plans of an older release are read without them
    max_unreached_s: float = 600.0
    max_unreached_rate: float = 0.2
    detectable_ratio: float = 3.0
    power: float = 0.9
    stops_when_all_revert: bool = False


def check_gate(gate: Gate) -> None:
    """Check settings before a plan is frozen with them.

    Raises:
        InvalidInput: settings that make no sense.
    """
    for name in ("alpha", "max_failure_rate", "power"):
        value = getattr(gate, name)
        if not 0 < value < 1:
            raise InvalidInput(f"gate.{name}: {value:g} is not between 0 and 1", field=f"gate.{name}")
    for name in ("bake_s", "max_silence_s", "max_wave_s", "max_unreached_s"):
        value = getattr(gate, name)
        if not 0 <= value <= 10 * 365 * 86400:
            raise InvalidInput(f"gate.{name}: {value:g} is not a number of seconds", field=f"gate.{name}")
    if not 0 <= gate.max_unreached_rate <= 1:
        text = f"gate.max_unreached_rate: {gate.max_unreached_rate:g} is not a share from 0 to 1"
        raise InvalidInput(text, field="gate.max_unreached_rate")
    if not 1 < gate.detectable_ratio <= _MAX_RATIO:
        text = f"gate.detectable_ratio: {gate.detectable_ratio:g} is not a number of times above 1, up to {_MAX_RATIO}"
        raise InvalidInput(text, field="gate.detectable_ratio")
    if gate.bake_s >= gate.max_wave_s:
        raise InvalidInput(
            f"gate.max_wave_s: {gate.max_wave_s:g} s is over before the bake of {gate.bake_s:g} s",
            field="gate.max_wave_s",
        )


def audits_needed(gate: Gate, promised_harm: float | None, wave_count: int) -> int:
    """Return how many audited rows a wave needs to pass."""
    if gate.min_audited is not None:
        return gate.min_audited
    if promised_harm is None or promised_harm >= 1:
        return 0  # there is no harm above it to see
    # of a promise of 0, one harmful row is enough; how rare a row must be seen is then a matter of taste
    rate = min(gate.detectable_ratio * max(promised_harm, _SMALLEST_PROMISE), (1 + promised_harm) / 2)
    return rows_needed(rate, promised_harm, alpha_of_pooled(alpha_of_test(gate, wave_count)), gate.power)


def alpha_of_test(gate: Gate, wave_count: int) -> float:
    """Divide the budget of a rollout over its waves and the two sequential tests of each."""
    return gate.alpha / (_SEQUENTIAL_TESTS * wave_count)


def alpha_of_pooled(alpha: float) -> float:
    """Return the level that all rows together have to reach by themselves: they are half of the mean of two."""
    return alpha / 2
