"""The temperature is the one that the score will divide by."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.certificate import temperature
from penstock.policy import confidence


def test_temperature_of_probabilities_is_the_one_the_score_applies() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(0, 3, (400, 3))
    labels = np.array([source.choice(3, p=row) for row in confidence.softmax(logits)])
    overconfident = confidence.softmax(logits, 0.5)
    fitted = temperature.temperature(overconfident, labels, kind="probabilities")
    assert fitted == pytest.approx(2.0, rel=0.25)
    restored = confidence.score(overconfident, kind="probabilities", temperature=fitted)
    direct = confidence.score(logits, kind="logits", temperature=fitted * 0.5)
    np.testing.assert_allclose(restored, direct, atol=1e-9)
