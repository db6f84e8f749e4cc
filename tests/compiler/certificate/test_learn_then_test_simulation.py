"""The promise itself: over many synthetic calibrations, how often the true harm is above what was certified."""

from __future__ import annotations

import math

import numpy as np

from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import THRESHOLDS, certify
from penstock.errors import CalibrationError

CALIBRATIONS, N, MAX_HARM, DELTA = 1000, 600, 0.02, 0.05
SAMPLING_ERROR = 3 * math.sqrt(DELTA * (1 - DELTA) / CALIBRATIONS)

# The world: scores are uniform on [0, 1]. An answer of score s is harmful with probability 0.4 (1 - s), and with
# probability 0.2 (1 - s) it differs from the cloud's without harm, because the cloud is wrong.
HARM, HARMLESS = 0.4, 0.2


def true_harm(threshold: float) -> float:
    """E[kept and harmful], the integral of HARM (1 - s) from the threshold to 1."""
    return HARM / 2 * (1 - threshold) ** 2


def true_disagreement(threshold: float) -> float:
    return (HARM + HARMLESS) / 2 * (1 - threshold) ** 2


def draw(rng: np.random.Generator) -> CertifyData:
    scores = rng.random(N)
    u = rng.random(N)
    harmful = u < HARM * (1 - scores)
    cloud_wrong = ~harmful & (u < (HARM + HARMLESS) * (1 - scores))
    return CertifyData(
        scores=scores,
        edge_predictions=np.where(harmful, 1, 0),
        cloud_predictions=np.where(cloud_wrong, 1, 0),
        labels=np.zeros(N, dtype=np.int64),
    )


def test_true_harm_is_above_the_promise_in_at_most_delta_of_the_calibrations() -> None:
    rng = np.random.default_rng(2110)
    broken = refused = audit_broken = 0
    coverages = []
    for _ in range(CALIBRATIONS):
        try:
            result = certify(draw(rng), max_harm=MAX_HARM, delta=DELTA)
        except CalibrationError:
            refused += 1
            continue
        coverages.append(result.coverage)
        broken += true_harm(result.threshold) > MAX_HARM
        audit_broken += true_disagreement(result.threshold) > result.audit_max_harm
    assert broken / CALIBRATIONS <= DELTA + SAMPLING_ERROR
    assert audit_broken / CALIBRATIONS <= DELTA + SAMPLING_ERROR
    assert refused / CALIBRATIONS <= 0.01
    best = 1 - next(t for t in reversed(THRESHOLDS) if true_harm(t) <= MAX_HARM)  # coverage of one who knows the truth
    assert np.mean(coverages) >= 0.7 * best  # a promise kept by keeping nothing would be worth nothing


def test_without_labels_true_disagreement_is_above_the_promise_in_at_most_delta_of_the_calibrations() -> None:
    rng = np.random.default_rng(1052)
    broken = 0
    for _ in range(CALIBRATIONS):
        data = draw(rng)
        unlabelled = CertifyData(
            scores=data.scores, edge_predictions=data.edge_predictions, cloud_predictions=data.cloud_predictions
        )
        result = certify(unlabelled, max_harm=MAX_HARM, delta=DELTA)
        broken += true_disagreement(result.threshold) > result.audit_max_harm
    assert broken / CALIBRATIONS <= DELTA + SAMPLING_ERROR


def test_the_simulation_would_notice_a_threshold_chosen_by_the_harm_seen() -> None:
    """Taking the lowest threshold whose harm on the sample is within the promise breaks it about every second time."""
    rng = np.random.default_rng(2110)
    broken = 0
    for _ in range(CALIBRATIONS):
        data = draw(rng)
        harmful = data.scores[data.edge_predictions == 1]
        naive = min(t for t in THRESHOLDS if np.count_nonzero(harmful >= t) <= MAX_HARM * N)
        broken += true_harm(naive) > MAX_HARM
    assert broken / CALIBRATIONS > 0.3
