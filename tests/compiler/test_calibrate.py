"""Calibration sees every example exactly once, and fits the temperature that the score will divide by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler import calibrate
from penstock import confidence
from penstock.errors import CalibrationError


@settings(deadline=None)  # a busy machine is no defect
@given(rows=st.integers(1, 200), max_batch=st.integers(1, 70))
def test_batches_are_all_rows_in_order(rows: int, max_batch: int) -> None:
    x = np.arange(rows)
    parts = list(calibrate.batches({"x": x}, max_batch))
    assert all(1 <= len(part["x"]) <= max_batch for part in parts)
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in parts]), x)


def test_a_feed_that_was_read_to_its_end_is_complete() -> None:
    feed = calibrate.Feed({"x": np.zeros((10, 2))}, max_batch=4)
    sizes = []
    while (batch := feed.get_next()) is not None:
        sizes.append(len(batch["x"]))
    assert sizes == [4, 4, 2]
    feed.check_complete()


def test_rows_left_behind_are_an_error() -> None:
    feed = calibrate.Feed({"x": np.zeros((10, 2))}, max_batch=4)
    feed.get_next()
    with pytest.raises(CalibrationError, match="read 4 of 10"):
        feed.check_complete()


def test_temperature_of_probabilities_is_the_one_the_score_applies() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(0, 3, (400, 3))
    labels = np.array([source.choice(3, p=row) for row in confidence.softmax(logits)])
    overconfident = confidence.softmax(logits, 0.5)
    fitted = calibrate.temperature(overconfident, labels, kind="probabilities")
    assert fitted == pytest.approx(2.0, rel=0.25)
    restored = confidence.score(overconfident, kind="probabilities", temperature=fitted)
    direct = confidence.score(logits, kind="logits", temperature=fitted * 0.5)
    np.testing.assert_allclose(restored, direct, atol=1e-9)
