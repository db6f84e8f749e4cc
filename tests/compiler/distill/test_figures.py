"""Figures of a student against their definitions, counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from compiler.distill import figures


@given(
    rows=st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60),
    max_harm=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
)
@settings(max_examples=200)
def test_coverage_is_the_best_of_all_thresholds(rows: list[tuple[int, bool]], max_harm: float) -> None:
    scores = np.array([score / 8 for score, _ in rows])
    harmful = np.array([harm for _, harm in rows])
    kept = [scores >= threshold for threshold in [*scores, 2.0]]
    best = max(float(np.mean(k)) for k in kept if np.mean(k & harmful) <= max_harm)
    assert figures.coverage_at_harm(scores, harmful, max_harm) == pytest.approx(best)


def test_calibration_error_of_known_bins() -> None:
    scores = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    expected = (4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.55)) / 6
    assert figures.calibration_error(scores, right) == pytest.approx(expected)
    assert figures.calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0


def test_a_student_that_is_its_teacher() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(size=(400, 5)).astype(np.float32) * 3
    labels = np.array([source.choice(5, p=np.exp(row)) for row in log_softmax(logits.astype(np.float64), axis=1)])
    found = figures.judge(logits, logits, labels)
    assert found.agreement == 1
    assert found.accuracy == found.teacher_accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    assert found.coverage_at_harm == {"0.005": 1.0, "0.01": 1.0, "0.02": 1.0, "0.05": 1.0}
    assert found.temperature == pytest.approx(1, abs=0.15), "labels were drawn from these very probabilities"
    too_sure = figures.judge(logits * 4, logits, labels)
    assert too_sure.temperature == pytest.approx(4 * found.temperature, rel=0.01)
    assert too_sure.calibrated_error < too_sure.calibration_error / 2


def test_without_labels_the_teacher_is_right() -> None:
    source = np.random.default_rng(1)
    student, teacher = source.normal(size=(2, 50, 3)).astype(np.float32)
    found = figures.judge(student, teacher, None)
    assert found.accuracy is None
    assert found.teacher_accuracy is None
    assert found.agreement == np.mean(student.argmax(axis=1) == teacher.argmax(axis=1))


def test_difference_is_relative_to_the_largest_logit() -> None:
    logits = np.array([[100.0, 0.0], [0.0, 50.0]], dtype=np.float32)
    moved = logits.copy()
    moved[1, 0] = 1
    assert figures.difference(moved, logits, "logits") == pytest.approx(0.01)
    small = np.array([[0.1, 0.2]], dtype=np.float32)
    assert figures.difference(small + 0.05, small, "logits") == pytest.approx(0.05)
    softmax = np.exp(log_softmax(logits.astype(np.float64), axis=1)).astype(np.float32)
    assert figures.difference(softmax, logits, "probabilities") < 1e-6
    assert not figures.difference(np.array([[np.nan, 0.0]]), small, "logits") <= figures.PARITY_TOLERANCE
