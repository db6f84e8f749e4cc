"""Rows that repeat or belong together: how often a promise is broken, by the test for each world and as if all rows
were independent.

Scores are uniform on [0, 1]; on average an answer of score s is harmful with probability 0.4 (1 - s). What service
brings is more of the same world: the very rows again where they repeat by nature, new clusters otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.binomial import clopper_pearson
from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import certify
from penstock.errors import CalibrationError

MAX_HARM, DELTA = 0.02, 0.05
_CALIBRATIONS = 2_000
_UNITS = 500  # clusters, or independent rows
_SLOPE = 0.4
_MOST = 200  # rows of one cluster
_EXPONENT = 1.6
_OF_ONE = 0.437490  # share of clusters of one row: 1 / zeta(1.6)

Floats = NDArray[np.float64]
TrueHarm = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One way in which certifying rows come about.

    Attributes:
        draw: gives certifying rows as the test for this world gets them, all rows as they lie in the file, and the true
            harm of service at a threshold.
    """

    draw: Callable[[np.random.Generator], tuple[CertifyData, CertifyData, TrueHarm]]


def independent(rng: np.random.Generator) -> tuple[CertifyData, CertifyData, TrueHarm]:
    """Draw rows that have nothing to do with each other."""
    scores = rng.random(_UNITS)
    data = _columns(scores, rng.random(_UNITS) < _SLOPE * (1 - scores))
    return data, data, _promised


def natural(rng: np.random.Generator) -> tuple[CertifyData, CertifyData, TrueHarm]:
    """Draw rows from 300 different ones with Zipf frequencies, which service draws from too."""
    frequencies: Floats = 1 / np.arange(1, 301)
    frequencies /= frequencies.sum()
    scores: Floats = rng.random(300)
    harmful = rng.random(300) < _SLOPE * (1 - scores)

    def true_harm(threshold: float) -> float:
        return float(frequencies[harmful & (scores >= threshold)].sum())

    drawn = rng.choice(300, size=_UNITS, p=frequencies)
    data = _columns(scores[drawn], harmful[drawn])
    return data, data, true_harm


def copies(sizes: Callable[[np.random.Generator], NDArray[np.int64]]) -> World:
    """Copy each row several times; one of each is certified, and service brings new ones."""

    def draw(rng: np.random.Generator) -> tuple[CertifyData, CertifyData, TrueHarm]:
        data, _, true_harm = independent(rng)
        copied = np.repeat(np.arange(_UNITS), sizes(rng))
        return data, _columns(data.scores[copied].astype(np.float64), data.edge_predictions[copied] == 1), true_harm

    return World(draw=draw)


def clusters(
    sizes: Callable[[np.random.Generator], NDArray[np.int64]],
    *,
    is_bad: Callable[[np.random.Generator, NDArray[np.int64]], NDArray[np.bool_]],
    share_bad: float,
) -> World:
    """Let rows belong together: in some clusters answers are harmful, in the others none is.

    Args:
        is_bad: says in which, given their sizes.
        share_bad: of the clusters, on average.
    """

    def draw(rng: np.random.Generator) -> tuple[CertifyData, CertifyData, TrueHarm]:
        size = sizes(rng)
        member = np.repeat(np.arange(_UNITS), size)
        scores = rng.random(len(member))
        chance = is_bad(rng, size)[member] * _SLOPE / share_bad * (1 - scores)
        data = _columns(scores, rng.random(len(member)) < chance)
        return replace(data, clusters=member), data, _promised

    return World(draw=draw)


def half(rng: np.random.Generator, size: NDArray[np.int64]) -> NDArray[np.bool_]:
    return rng.random(len(size)) < 0.5


def alone(rng: np.random.Generator, size: NDArray[np.int64]) -> NDArray[np.bool_]:
    del rng
    return np.asarray(size == 1)


def together(rng: np.random.Generator, size: NDArray[np.int64]) -> NDArray[np.bool_]:
    del rng
    return np.asarray(size > 1)


def equal(rng: np.random.Generator) -> NDArray[np.int64]:
    return np.full(_UNITS, 10)


def zipf(rng: np.random.Generator) -> NDArray[np.int64]:
    return np.minimum(rng.zipf(_EXPONENT, _UNITS), _MOST)


WORLDS: Mapping[str, World] = {
    "independent rows": World(draw=independent),
    "300 different rows that repeat by nature, Zipf": World(draw=natural),
    "each row copied 10 times": copies(equal),
    "each row copied 1 to 200 times, Zipf": copies(zipf),
    "clusters of 10, half of them harmful": clusters(equal, is_bad=half, share_bad=0.5),
    "clusters of 1 to 200, Zipf, half of them harmful": clusters(zipf, is_bad=half, share_bad=0.5),
    "the same, those of one row harmful": clusters(zipf, is_bad=alone, share_bad=_OF_ONE),
    "the same, those of more rows harmful": clusters(zipf, is_bad=together, share_bad=1 - _OF_ONE),
}


def table() -> str:
    """Certify many times in every world; return what came of it as Markdown."""
    lines = [
        f"{_CALIBRATIONS:,} calibrations on {_UNITS} rows or clusters, at most {MAX_HARM:.0%} of harm with "
        f"{1 - DELTA:.0%} confidence. Broken: the true harm is above the promise (95% interval).",
        "",
        "| world | broken | kept on the device | refused | broken, were rows taken for independent |",
        "|---|---|---|---|---|",
    ]
    for name, world in WORLDS.items():
        found = outcomes(world, _CALIBRATIONS)
        count = int(np.count_nonzero(found.broken))
        low, high = clopper_pearson(count, _CALIBRATIONS, 0.05)
        lines.append(
            f"| {name} | {count / _CALIBRATIONS:.2%} ({low:.2%} to {high:.2%}) | {found.coverage.mean():.1%} | "
            f"{found.refused.mean():.1%} | {found.naive_broken.mean():.1%} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """One entry a calibration: whether the promise is broken, by the test and by the naive one; what is kept."""

    broken: NDArray[np.bool_]
    naive_broken: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    coverage: Floats


def outcomes(world: World, calibrations: int) -> Outcomes:
    """Certify a world again and again."""
    found = []
    for seed in range(calibrations):
        data, naive, true_harm = world.draw(np.random.default_rng(seed))
        threshold, naive_threshold = _threshold(data), _threshold(naive)
        kept = data.scores >= threshold
        found.append(
            (true_harm(threshold) > MAX_HARM, true_harm(naive_threshold) > MAX_HARM, threshold > 1, kept.mean())
        )
    columns = [np.array(column) for column in zip(*found, strict=True)]
    return Outcomes(broken=columns[0], naive_broken=columns[1], refused=columns[2], coverage=columns[3])


def _threshold(data: CertifyData) -> float:
    """Return the certified threshold; above 1, which keeps nothing, for a refusal."""
    try:
        return certify(data, max_harm=MAX_HARM, delta=DELTA).threshold
    except CalibrationError:
        return 2.0


def _columns(scores: Floats, harmful: NDArray[np.bool_]) -> CertifyData:
    zero = np.zeros(len(scores), dtype=np.int64)
    return CertifyData(scores=scores, edge_predictions=harmful.astype(np.int64), cloud_predictions=zero, labels=zero)


def _promised(threshold: float) -> float:
    """Return E[kept and harmful]: the integral of 0.4 (1 - s) from the threshold to 1."""
    return _SLOPE / 2 * max(1 - threshold, 0.0) ** 2
