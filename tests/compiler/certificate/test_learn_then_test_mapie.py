"""MAPIE's Learn-then-Test controller as an oracle.

What is comparable, precisely: MAPIE's ``BinaryClassificationController`` with a risk of our own, "kept and harmful"
over *all* examples (its built-in precision divides by the kept ones, which is another promise), our thresholds from
strict to loose, and fixed-sequence testing. Its p-value is min(Hoeffding, Bentkus for binary losses), and the second
is the exact binomial tail, which is never above the first: so its valid thresholds are ours up to rounding. The
rounding: MAPIE recovers the harm count as ceil(n * (count / n)), which may be one too many when count / n is not exact
in binary. With n a power of two it is exact and the valid sets must be equal; with any other n, MAPIE's is a part of
ours.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController, BinaryRisk
from numpy.typing import NDArray

from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import THRESHOLDS, certify
from penstock.errors import CalibrationError

kept_and_harmful = BinaryRisk(
    risk_occurrence=lambda harmful, kept: (harmful == 1) & (kept == 1),
    risk_condition=lambda harmful, kept: np.ones_like(harmful, dtype=bool),
    higher_is_better=False,
)
share_kept = BinaryRisk(
    risk_occurrence=lambda harmful, kept: kept == 1,
    risk_condition=lambda harmful, kept: np.ones_like(harmful, dtype=bool),
    higher_is_better=True,  # MAPIE's own "predicted_positive_fraction" is a risk, and would choose the strictest
)


def draw(seed: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random(n) < 0.2, rng.choice(THRESHOLDS, n), rng.random(n))  # a fifth are ties
    return scores, rng.random(n) < rng.uniform(0.05, 0.5) * (1 - scores)


def oracle(
    scores: NDArray[np.float64], harmful: NDArray[np.bool_], max_harm: float, delta: float, method: str
) -> tuple[list[float], float | None]:
    """MAPIE's valid thresholds, strictest first, and the one that keeps most."""
    controller = BinaryClassificationController(
        predict_function=lambda x: np.column_stack([1 - x, x]),
        risk=kept_and_harmful,
        target_level=max_harm,
        confidence_level=1 - delta,
        best_predict_param_choice=share_kept,
        list_predict_params=np.array(THRESHOLDS),
        fwer_method=method,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where no threshold is valid
        controller.calibrate(scores, harmful.astype(int))
    best = controller.best_predict_param
    return [float(t) for t in controller.valid_predict_params], None if best is None else float(best)


def ours(
    scores: NDArray[np.float64], harmful: NDArray[np.bool_], max_harm: float, delta: float
) -> tuple[float, int] | None:
    data = CertifyData(
        scores=scores,
        edge_predictions=harmful.astype(np.int64),
        cloud_predictions=np.zeros(len(scores), dtype=np.int64),
        labels=np.zeros(len(scores), dtype=np.int64),
    )
    try:
        result = certify(data, max_harm=max_harm, delta=delta)
    except CalibrationError:
        return None
    return result.threshold, result.kept_count


@pytest.mark.parametrize("n", [256, 1024])
@pytest.mark.parametrize("max_harm", [0.02, 0.05])
@pytest.mark.parametrize("seed", range(15))
def test_the_same_thresholds_are_valid(n: int, max_harm: float, seed: int) -> None:
    scores, harmful = draw(seed, n)
    valid, best = oracle(scores, harmful, max_harm, 0.05, "fixed_sequence")
    result = ours(scores, harmful, max_harm, 0.05)
    if result is None:
        assert best is None or not (scores >= min(valid)).any()
        return
    threshold, kept = result
    assert valid == [t for t in THRESHOLDS if t >= threshold]
    assert best is not None
    assert np.count_nonzero(scores >= best) == kept


@pytest.mark.parametrize("n", [300, 599, 1000])
@pytest.mark.parametrize("seed", range(10))
def test_with_counts_that_it_rounds_up_it_is_only_ever_stricter(n: int, seed: int) -> None:
    scores, harmful = draw(seed, n)
    valid, best = oracle(scores, harmful, 0.05, 0.05, "fixed_sequence")
    result = ours(scores, harmful, 0.05, 0.05)
    if best is not None and (scores >= min(valid)).any():
        assert result is not None
        assert set(valid) <= {t for t in THRESHOLDS if t >= result[0]}


@pytest.mark.parametrize("seed", range(10))
def test_splitting_the_error_budget_over_all_thresholds_is_never_laxer(seed: int) -> None:
    """Bonferroni needs no order of testing, and pays for it: where it is valid, fixed-sequence testing is."""
    scores, harmful = draw(seed, 1024)
    valid, _ = oracle(scores, harmful, 0.05, 0.05, "bonferroni")
    result = ours(scores, harmful, 0.05, 0.05)
    assert valid
    assert result is not None
    assert result[0] <= min(valid)


def test_the_draws_hold_certificates_and_refusals_or_the_comparison_would_be_empty() -> None:
    results = [
        ours(*draw(seed, n), max_harm, 0.05) for seed in range(15) for n in (256, 1024) for max_harm in (0.02, 0.05)
    ]
    thresholds = {result[0] for result in results if result is not None}
    assert len(thresholds) > 20
