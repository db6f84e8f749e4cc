"""A promise to each of several groups: how often it is broken, with the whole of delta for each group and with a share.

Scores are uniform on [0, 1]. In every group but the worst an answer of score s is harmful with probability 0.1 (1 - s),
in the worst with 0.4 (1 - s): the promise to it is the one that can break. Counts are drawn at the thresholds at once,
which is what the rows themselves would give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.binomial import allowed_harm, clopper_pearson, samples_needed
from compiler.certificate.learn_then_test import THRESHOLDS

_CALIBRATIONS = 4_000
_MAX_HARM, _DELTA = 0.02, 0.05
_ROWS = 600
_USUAL, _WORST = 0.1, 0.4

Counts = NDArray[np.int64]


def table() -> str:
    """Certify many times for 1, 8 and 64 groups; return what came of it as Markdown."""
    lines = [
        f"{_CALIBRATIONS:,} calibrations, {_ROWS} examples a group, at most {_MAX_HARM:.0%} of harm with "
        f"{1 - _DELTA:.0%} confidence. Broken: the true harm of some group is above the promise (95% interval).",
        "",
        "| groups | delta of each | broken | kept on the device | fewest examples a group |",
        "|---|---|---|---|---|",
    ]
    for groups in (1, 8, 64):
        for name, delta in (("whole", _DELTA), ("a share", _DELTA / groups)):
            broken, coverage = outcomes(groups, delta, seed=groups)
            count = int(np.count_nonzero(broken))
            low, high = clopper_pearson(count, len(broken), 0.05)
            needed = samples_needed(_MAX_HARM, delta)
            lines.append(
                f"| {groups} | {name} | {count / len(broken):.2%} ({low:.2%} to {high:.2%}) | "
                f"{float(np.mean(coverage)):.1%} | {needed} |"
            )
    return "\n".join(lines)


def outcomes(groups: int, delta: float, *, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return for each calibration whether the promise is broken, and the share that is kept (0 where refused)."""
    rng = np.random.default_rng(seed)
    allowed = allowed_harm(_ROWS, _MAX_HARM, delta)
    passed = np.full(_CALIBRATIONS, len(THRESHOLDS))
    for slope in [_WORST] + [_USUAL] * (groups - 1):
        passed = np.minimum(passed, _passed(_harm_counts(rng, slope), allowed))
    thresholds = np.array([np.inf, *THRESHOLDS])[passed]  # none passed: nothing is kept
    kept = np.clip(1 - thresholds, 0, None)
    return _WORST / 2 * kept**2 > _MAX_HARM, kept


def _harm_counts(rng: np.random.Generator, slope: float) -> Counts:
    """Draw how many of a group's examples are kept and harmful at each threshold: [calibrations, thresholds]."""
    kept = 1 - np.array(THRESHOLDS)
    upto = slope / 2 * kept**2  # the integral of slope (1 - s) from the threshold to 1
    shares = np.append(np.diff(upto, prepend=0.0), 1 - upto[-1])
    return np.cumsum(rng.multinomial(_ROWS, shares, size=_CALIBRATIONS)[:, :-1], axis=1)


def _passed(harm: Counts, allowed: int) -> Counts:
    """Count the thresholds that pass in a row, from the strictest."""
    return np.asarray(np.count_nonzero(harm <= allowed, axis=1))  # counts only grow along the thresholds
