"""The promise with the choice in the loop: over many draws from a population whose true harm is known, how often the
chosen and certified cascade does more harm than was promised. And what happens where the choice is made by looking."""

from __future__ import annotations

import math

import numpy as np

from compiler.certificate.binomial import allowed_harm
from compiler.certificate.columns import CertifyData, counts_at
from compiler.certificate.learn_then_test import promise
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError
from penstock.policy import confidence
from tests.compiler.certificate.classifiers import choose

DELTA, DRAWS = 0.1, 400
SAMPLING_ERROR = 3 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


def test_the_promise_survives_the_choice_of_score_temperature_and_thresholds() -> None:
    rng = np.random.default_rng(31)
    size, section = 8000, CertificateSection(max_harm=0.04, delta=DELTA)
    labels = rng.integers(0, 5, size)
    logits = rng.normal(0, 1.2, (size, 5))
    logits[np.arange(size), labels] += rng.gamma(3, 1.0, size)
    cloud = np.where(rng.random(size) < 0.97, labels, 0)
    edge = confidence.predicted(logits)
    harmful = (edge != labels) & (cloud == labels)
    broken, scores_seen, coverages = 0, set(), []
    for _ in range(DRAWS):
        tune, certifying = rng.integers(0, size, 150), rng.integers(0, size, 300)
        choice = choose(
            logits[tune], edge[tune], cloud[tune], labels[tune], "logits", section, rows_to_certify=len(certifying)
        )
        scores = confidence.score(logits, kind="logits", name=choice.score, temperature=choice.temperature)
        data = CertifyData(
            scores=scores[certifying],
            edge_predictions=edge[certifying],
            cloud_predictions=cloud[certifying],
            labels=labels[certifying],
        )
        try:
            found = promise(data, section, thresholds=choice.thresholds).default
        except CalibrationError:
            continue
        scores_seen.add(choice.score)
        coverages.append(found.coverage)
        broken += np.mean(harmful & (scores >= found.threshold)) > 0.04  # the truth, of the whole population
    assert broken / DRAWS <= DELTA + SAMPLING_ERROR
    assert len(scores_seen) >= 3  # or nothing would have been chosen
    assert np.mean(coverages) > 0.3


def test_choosing_by_looking_at_the_certifying_split_breaks_the_promise() -> None:
    """Documentation of the trap: the same forty scores, certified where they were chosen and where they were not."""
    assert broken_by("certify") / DRAWS > DELTA + SAMPLING_ERROR
    assert broken_by("tune") / DRAWS <= DELTA + SAMPLING_ERROR


def broken_by(choosing: str) -> int:
    """Draws that break the promise. The scores know nothing: true harm is 0.12 of what is kept, whichever is taken."""
    rng = np.random.default_rng(7)
    n, harm_rate, max_harm = 200, 0.12, 0.06
    grid = np.arange(1, 20)[::-1] / 20
    allowed = allowed_harm(n, max_harm, DELTA)

    def lowest() -> float:
        """The lowest threshold that certifies on a fresh split of n."""
        harmful = rng.random(n) < harm_rate
        passed = counts_at(grid, rng.random(n), harmful) <= allowed
        return float(grid[int(np.argmin(np.append(passed, False))) - 1])

    broken = 0
    for _ in range(DRAWS):
        tried = [(lowest(), lowest()) for _ in range(40)]  # on the tuning and on the certifying split
        best = min(tried, key=lambda pair: pair[0] if choosing == "tune" else pair[1])
        broken += harm_rate * (1 - best[1]) > max_harm + 1e-9  # scores are uniform: 1 - threshold of all is kept
    return broken
