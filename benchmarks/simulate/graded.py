"""Answers that an opinion grades from 0 to 1: how often a promise is broken by two tests for averages, and how an audit
watches it.

Scores are uniform on [0, 1]; an answer of score s is harmful by 0.4 (1 - s) on average, and how that comes about is the
world: whole answers, parts of many, much of a few. The tests are the one that certificates are made by (one bet,
``compiler.certificate.betting``) and Hoeffding's and Bentkus's bounds, the better of the two (Bates et al.,
"Distribution-free, risk-controlling prediction sets", arXiv 2101.02703).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulate.clusters import equal, zipf
from compiler.certificate import units
from compiler.certificate.betting import lower_mean
from compiler.certificate.binomial import allowed_harm, clopper_pearson
from compiler.certificate.columns import CertifyData, Graded
from compiler.certificate.learn_then_test import THRESHOLDS, certify
from penstock.errors import CalibrationError
from penstock.policy.change_detection import ALTERNATIVES, log_ratios

MAX_HARM, DELTA = 0.05, 0.05
BOUND, RUN_LENGTH = 0.05, 1e6
_CALIBRATIONS = 2_000
_UNITS = 500
_SLOPE = 0.4
_DEVICES, _AUDITS, _LOOKS = 200, 200_000, 20_000
_GRID = np.array(THRESHOLDS)

Floats = NDArray[np.float64]
Harm = Callable[[np.random.Generator, Floats], Floats]
"""Draws how harmful answers are, given how harmful they are on average [N]."""


def coins(rng: np.random.Generator, mean: Floats) -> Floats:
    """Let an answer be harmful altogether, or not at all."""
    return (rng.random(mean.shape) < mean).astype(np.float64)


def spread(rng: np.random.Generator, mean: Floats) -> Floats:
    """Draw from Beta distributions that reach from 0 to 1."""
    return rng.beta(2 * mean + 1e-12, 2 * (1 - mean))


def alike(rng: np.random.Generator, mean: Floats) -> Floats:
    """Draw from Beta distributions that are narrow: every answer is worse by about as much."""
    return rng.beta(20 * mean + 1e-12, 20 * (1 - mean))


def few(rng: np.random.Generator, mean: Floats) -> Floats:
    """Let a few answers be harmful by 0.9, and the others not at all."""
    return np.where(rng.random(mean.shape) < mean / 0.9, 0.9, 0.0)


def part(rng: np.random.Generator, mean: Floats) -> Floats:
    """Let answers be harmful by 0.4 or not at all: none is wholly."""
    return np.where(rng.random(mean.shape) < mean / 0.4, 0.4, 0.0)


HARMS: Mapping[str, Harm] = {
    "whole answers (Bernoulli)": coins,
    "from 0 to 1 (Beta)": spread,
    "every answer by about as much (narrow Beta)": alike,
    "mostly none, a few by 0.9": few,
    "none or by 0.4": part,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How certifying answers come about.

    Attributes:
        harm: of an answer.
        sizes: of clusters, of which half are harmful twice as much; None for independent answers.
    """

    harm: Harm
    sizes: Callable[[np.random.Generator], NDArray[np.int64]] | None = None

    def draw(self, rng: np.random.Generator) -> CertifyData:
        """Draw certifying answers."""
        member = None if self.sizes is None else np.repeat(np.arange(_UNITS), self.sizes(rng))
        scores = rng.random(_UNITS if member is None else len(member))
        mean = _SLOPE * (1 - scores)
        if member is not None:
            mean = mean * 2 * (rng.random(_UNITS) < 0.5)[member]
        grades, same = 1 - self.harm(rng, mean), np.zeros(len(scores), dtype=np.int64)
        return CertifyData(
            scores=scores,
            edge_predictions=np.arange(len(scores)),
            cloud_predictions=same,
            clusters=member,
            graded=Graded(edge=grades, cloud=np.ones(len(scores)), alike=grades),
        )


WORLDS: Mapping[str, World] = {
    **{name: World(harm=harm) for name, harm in HARMS.items()},
    "clusters of 10, half of them harmful (Beta)": World(harm=spread, sizes=equal),
    "clusters of 1 to 200, Zipf, half of them harmful (Beta)": World(harm=spread, sizes=zipf),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """One entry a calibration, by each test: whether the promise is broken, and what is kept."""

    broken: NDArray[np.bool_]
    kept: Floats
    other_broken: NDArray[np.bool_]
    other_kept: Floats


def table() -> str:
    """Certify many times in every world, and let devices audit; return what came of it as Markdown."""
    return f"{_certificates()}\n\n{_audits()}"


def outcomes(world: World, calibrations: int) -> Outcomes:
    """Certify a world again and again, by both tests."""
    found = []
    for seed in range(calibrations):
        data = world.draw(np.random.default_rng(seed))
        thresholds = (_by_betting(data), _by_hoeffding_and_bentkus(data))
        found += [(_true_harm(threshold) > MAX_HARM, max(1 - threshold, 0.0)) for threshold in thresholds]
    broken, kept = (np.array(column).reshape(-1, 2) for column in zip(*found, strict=True))
    return Outcomes(broken=broken[:, 0], kept=kept[:, 0], other_broken=broken[:, 1], other_kept=kept[:, 1])


def after(state: Floats, shares: Floats) -> Floats:
    """Take one outcome of every device in: ``change_detection.updated_by_share`` for many devices at once."""
    return np.asarray((state + 1.0) * (_DOWN + shares[:, None] * (_UP - _DOWN)))


_UP, _DOWN = (np.exp(column) for column in np.array(log_ratios(BOUND)).T)


def _certificates() -> str:
    lines = [
        f"{_CALIBRATIONS:,} calibrations on {_UNITS} answers or clusters, at most {MAX_HARM:.0%} of harm with "
        f"{1 - DELTA:.0%} confidence; who knows the truth keeps {math.sqrt(2 * MAX_HARM / _SLOPE):.1%}. Broken: the "
        "true harm is above the promise (95% interval).",
        "",
        "| harm | broken | kept | broken, Hoeffding-Bentkus | kept |",
        "|---|---|---|---|---|",
    ]
    for name, world in WORLDS.items():
        found = outcomes(world, _CALIBRATIONS)
        count = int(np.count_nonzero(found.broken))
        low, high = clopper_pearson(count, _CALIBRATIONS, 0.05)
        lines.append(
            f"| {name} | {count / _CALIBRATIONS:.2%} ({low:.2%} to {high:.2%}) | {found.kept.mean():.1%} | "
            f"{found.other_broken.mean():.2%} | {found.other_kept.mean():.1%} |"
        )
    return "\n".join(lines)


def _audits() -> str:
    """Let devices audit at the bound, and after a change to three times as much."""
    lines = [
        f"Audits of {_DEVICES} devices at a bound of {BOUND:.0%}, run length {RUN_LENGTH:,.0f}: false alarms in 10^6 "
        f"audits where harm is exactly at the bound (of {_DEVICES * _AUDITS:,}), and audits until three times as much "
        "is seen, median (90%). Rounded: counted as harm with the probability that it has, as a fleet is told.",
        "",
        "| harm | false alarms | seen after | rounded: false alarms | seen after |",
        "|---|---|---|---|---|",
    ]
    for name, harm in HARMS.items():
        cells = []
        for rounds in (False, True):
            alarms, waits = watched(harm, rounds=rounds, audits=_AUDITS)
            rate = alarms / (_DEVICES * _AUDITS / 1e6)
            cells += [f"{rate:.2f}", f"{np.median(waits):,.0f} ({np.quantile(waits, 0.9):,.0f})"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def watched(harm: Harm, *, rounds: bool, audits: int) -> tuple[int, Floats]:
    """Return the false alarms of devices at the bound, and how long each then took to see three times as much."""
    rng = np.random.default_rng(53)
    state, alarms = np.zeros((_DEVICES, len(ALTERNATIVES))), 0

    def outcome(mean: float) -> Floats:
        shares = harm(rng, np.full(_DEVICES, mean))
        return coins(rng, shares) if rounds else shares

    for _ in range(audits):
        state = after(state, outcome(BOUND))
        crossed = state.mean(axis=1) >= RUN_LENGTH
        alarms += int(crossed.sum())
        state[crossed] = 0.0
    waits = np.full(_DEVICES, math.inf)
    for number in range(1, _LOOKS + 1):
        state = np.minimum(after(state, outcome(3 * BOUND)), 1e290)
        waits[(state.mean(axis=1) >= RUN_LENGTH) & np.isinf(waits)] = number
        if not np.isinf(waits).any():
            break
    return alarms, waits


def _by_betting(data: CertifyData) -> float:
    """Return the certified threshold; above 1, which keeps nothing, for a refusal."""
    try:
        return certify(data, max_harm=MAX_HARM, delta=DELTA, thresholds=THRESHOLDS).threshold
    except CalibrationError:
        return 2.0


def _by_hoeffding_and_bentkus(data: CertifyData) -> float:
    n = len(data.scores) if data.clusters is None else len(np.unique(data.clusters))
    most = max(lower_mean(MAX_HARM, n, DELTA), allowed_harm(n, MAX_HARM, DELTA / math.e) / n)
    passed = int(np.argmin(np.append(units.harm_at(data, _GRID) <= most, False)))
    return float(_GRID[passed - 1]) if passed else 2.0


def _true_harm(threshold: float) -> float:
    """Return E[kept x harm]: the integral of 0.4 (1 - s) from the threshold to 1."""
    return _SLOPE / 2 * max(1 - threshold, 0.0) ** 2
