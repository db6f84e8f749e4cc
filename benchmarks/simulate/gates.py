"""A rollout's gates: how often a good version is stopped, which rows see harm, and which failures a wave lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cloud_core.policy.rollouts.gate_settings import Gate, alpha_of_test, audits_needed
from penstock.policy.power import binomial_tail
from penstock.policy.sequential import e_value_above

PROMISED = 0.02
GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=None, bake_s=300.0, max_silence_s=120.0, max_wave_s=86400.0)
_ROLLOUTS = 2_000
_ROWS, _ROWS_A_LOOK = 1_200, 10
_DEVICES = 100


def table() -> str:
    """Return three tables as Markdown: false stops, audited rows that are needed, and waves that pass."""
    return "\n".join([*_false_stops(), "", *_rows_needed(), "", *_passing_waves()])


def _false_stops() -> Iterator[str]:
    random = np.random.default_rng(24)
    yield (
        f"Rollouts of which harm ({PROMISED:.0%}) and failures ({GATE.max_failure_rate:.0%}) are exactly at their "
        f"limits, looked at after every {_ROWS_A_LOOK} rows and every device; stopped of {_ROLLOUTS:,} "
        f"(alpha {GATE.alpha:g}):"
    )
    yield ""
    yield "| waves | each test with all of alpha | alpha shared by waves and tests |"
    yield "|---|---|---|"
    for waves in (1, 3, 10):
        highest = np.stack([_highest_e_values(random) for _ in range(waves)])
        whole = np.mean(highest.max(axis=0) >= 1 / GATE.alpha)
        shared = np.mean(highest.max(axis=0) >= 1 / alpha_of_test(GATE, waves))
        yield f"| {waves} | {whole:.1%} | {shared:.1%} |"


def _highest_e_values(random: np.random.Generator) -> NDArray[np.float64]:
    """Run one wave of every rollout; return the largest e-value that either test ever showed."""
    harm = random.random((_ROLLOUTS, _ROWS)) < PROMISED
    failed = random.random((_ROLLOUTS, _DEVICES)) < GATE.max_failure_rate
    looks = np.arange(_ROWS_A_LOOK, _ROWS + 1, _ROWS_A_LOOK)
    by_rows = _e_values(harm.cumsum(axis=1)[:, looks - 1], looks, PROMISED)
    # devices that are not done count as not failed
    counts = np.full(_DEVICES, _DEVICES)
    by_devices = _e_values(failed.cumsum(axis=1), counts, GATE.max_failure_rate)
    highest: NDArray[np.float64] = np.concatenate([by_rows, by_devices], axis=1).max(axis=1)
    return highest


def _e_values(counts: NDArray[np.int64], of: NDArray[np.int64], bound: float) -> NDArray[np.float64]:
    columns = []
    for number, n in enumerate(of):
        values = np.array([e_value_above(h, int(n), bound) for h in range(int(counts[:, number].max()) + 1)])
        columns.append(values[counts[:, number]])
    return np.stack(columns, axis=1)


def _rows_needed() -> Iterator[str]:
    multiples = (2, 3, 5, 10)
    yield f"Audited rows that a wave needs (of three waves, alpha {GATE.alpha:g}, power {GATE.power:.0%}), to see"
    yield ""
    yield "| promised harm | " + " | ".join(f"{multiple}x" for multiple in multiples) + " |"
    yield "|---" * (1 + len(multiples)) + "|"
    for promised in (0.005, 0.01, 0.02, 0.05, 0.1):
        gates = (replace(GATE, detectable_ratio=multiple) for multiple in multiples)
        cells = " | ".join(f"{audits_needed(gate, promised, 3):,}" for gate in gates)
        yield f"| {promised:.1%} | {cells} |"


def _passing_waves() -> Iterator[str]:
    rates = (0.02, 0.05, 0.1, 0.2, 0.5)
    yield f"Waves whose share of failed devices is within {GATE.max_failure_rate:.0%}, by the true rate:"
    yield ""
    yield "| devices | " + " | ".join(f"{rate:.0%} fail" for rate in rates) + " |"
    yield "|---" * (1 + len(rates)) + "|"
    for devices in (1, 5, 24, 100, 1000):
        most = int(GATE.max_failure_rate * devices)
        cells = " | ".join(f"{1 - binomial_tail(most + 1, devices, rate):.0%}" for rate in rates)
        yield f"| {devices} | {cells} |"
