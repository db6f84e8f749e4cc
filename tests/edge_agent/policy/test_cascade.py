"""Which rows are kept, in which mode, and how a request's reasons are summed up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.policy import cascade
from edge_agent.policy.cascade import CascadeMode, Decision, Reason, RowOutcome
from penstock.wire.outcomes import OUTCOMES as OUTCOME_NAMES

SCORES = st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=30)
THRESHOLDS = st.one_of(st.floats(0, 1), st.just(float("nan")))


@given(scores=SCORES, threshold=THRESHOLDS)
def test_a_row_is_kept_exactly_when_its_score_reaches_the_threshold(scores: list[float], threshold: float) -> None:
    decision = cascade.decide(np.array(scores), mode=CascadeMode.CASCADE, threshold=threshold)
    assert decision.is_kept == [score >= threshold for score in scores]
    assert not any(kept for kept, score in zip(decision.is_kept, scores, strict=True) if math.isnan(score))


@given(scores=SCORES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_stricter_threshold_keeps_no_row_more(scores: list[float], low: float, high: float) -> None:
    low, high = sorted((low, high))
    strict = cascade.decide(np.array(scores), mode=CascadeMode.CASCADE, threshold=high).is_kept
    lax = cascade.decide(np.array(scores), mode=CascadeMode.CASCADE, threshold=low).is_kept
    assert all(in_lax or not in_strict for in_strict, in_lax in zip(strict, lax, strict=True))


@given(scores=SCORES, mode=st.sampled_from([CascadeMode.ESCALATE_ALL, CascadeMode.CLOUD_ONLY]))
def test_no_other_mode_keeps_anything(scores: list[float], mode: CascadeMode) -> None:
    decision = cascade.decide(np.array(scores), mode=mode, threshold=0.0)
    assert decision.is_kept == [False] * len(scores)
    assert not cascade.decide(np.array([1.0]), mode=mode, threshold=0.0).is_kept[0]


@given(scores=SCORES, cut=st.integers(0, 30))
def test_deciding_about_a_batch_is_deciding_about_its_requests(scores: list[float], cut: int) -> None:
    whole = cascade.decide(np.array(scores), mode=CascadeMode.CASCADE, threshold=0.5)
    cut = min(cut, len(scores))
    parts = [whole.part(0, cut), whole.part(cut, len(scores))]
    assert parts[0].is_kept + parts[1].is_kept == whole.is_kept


@pytest.mark.parametrize(
    ("problem", "seen", "crossed", "expected"),
    [
        ("", "", False, CascadeMode.CASCADE),
        ("", "cloud", False, CascadeMode.CASCADE),
        ("", "other", False, CascadeMode.ESCALATE_ALL),
        ("", "other", True, CascadeMode.CLOUD_ONLY),
        ("", "", True, CascadeMode.CLOUD_ONLY),
        ("no certificate", "cloud", True, CascadeMode.ESCALATE_ALL),
    ],
)
def test_mode(problem: str, seen: str, crossed: bool, expected: CascadeMode) -> None:
    decided = cascade.choose_mode(
        certificate_problem=problem, cloud_digest="cloud", seen_cloud_digest=seen, has_crossed=crossed
    )
    assert decided.mode is expected
    assert bool(decided.why) == (expected is not CascadeMode.CASCADE)


OUTCOMES = st.builds(RowOutcome, st.sampled_from(list(Reason)), st.booleans())


@given(st.lists(OUTCOMES, min_size=1, max_size=10))
def test_a_verdict_names_the_gravest_reason_and_everybody_who_answered(outcomes: list[RowOutcome]) -> None:
    verdict = cascade.verdict(outcomes)
    reasons = [outcome.reason for outcome in outcomes]
    assert verdict.reason in reasons
    assert (verdict.reason is Reason.CONFIDENT) == all(reason is Reason.CONFIDENT for reason in reasons)
    assert (verdict.reason is Reason.NOT_FINITE) == (Reason.NOT_FINITE in reasons)
    answered_by = {"cloud" if outcome.is_by_cloud else "edge" for outcome in outcomes}
    assert verdict.served_by == ("mixed" if len(answered_by) == 2 else answered_by.pop())


@given(st.lists(OUTCOMES, max_size=10))
def test_every_row_raises_one_counter_and_one_that_is_not_finite_its_own(outcomes: list[RowOutcome]) -> None:
    counted = cascade.counted(outcomes)
    assert sum(counted.values()) == len(outcomes)
    assert counted["not_finite"] == sum(outcome.reason is Reason.NOT_FINITE for outcome in outcomes)
    assert set(counted) <= set(OUTCOME_NAMES)


@pytest.mark.parametrize("failure", [Reason.CLOUD_UNREACHABLE, Reason.BUDGET, Reason.DEADLINE, Reason.PRIVACY])
@pytest.mark.parametrize("has_cloud", [True, False])
def test_a_broken_sensor_is_the_reason_whatever_else_went_wrong(failure: Reason, has_cloud: bool) -> None:
    def outcome(*, is_broken: bool, is_usable: bool) -> RowOutcome:
        return cascade.row_outcome(
            escalate_reason=Reason.ESCALATED, failure=failure, has_cloud=has_cloud, is_broken=is_broken,
            is_usable=is_usable,
        )  # fmt: skip

    assert outcome(is_broken=True, is_usable=True) == RowOutcome(Reason.NOT_FINITE, has_cloud)
    assert outcome(is_broken=False, is_usable=True) == RowOutcome(Reason.ESCALATED if has_cloud else failure, has_cloud)
    # the device's own answer overflowed: that matters only where it goes out
    expected = Reason.ESCALATED if has_cloud else Reason.NOT_FINITE
    assert outcome(is_broken=False, is_usable=False) == RowOutcome(expected, has_cloud)


def test_inputs_that_are_not_finite_are_found_by_row() -> None:
    x = np.array([[1, 2], [np.nan, 1], [0, -np.inf]], np.float32)
    found = cascade.finite_inputs({"x": x, "n": np.array([1, 2, 3])}, 3)
    assert found is not None
    assert found.tolist() == [True, False, False]
    assert cascade.finite_inputs({"x": x[:1], "words": np.array([[b"nan"]], dtype=object)}, 1) is None
    assert cascade.finite_inputs({"x": np.full((2, 2), 1e30, np.float32)}, 2) is None  # only the check overflows
    shared = cascade.finite_inputs({"x": np.zeros((2, 2), np.float32), "k": np.array([np.nan], np.float32)}, 2)
    assert shared is not None
    assert not shared.any()  # an input without rows speaks for every row


def test_only_finite_rows_are_evidence() -> None:
    decision = Decision([False] * 3, Reason.ESCALATED, [True, False, True])
    assert cascade.evidence([0, 1, 2], decision, can_split=True) == [0, 2]
    assert cascade.evidence([0, 1, 2], decision, can_split=False) == []
    assert cascade.evidence([0, 2], Decision([True] * 3, Reason.ESCALATED), can_split=False) == [0, 2]


@given(st.lists(st.floats(0, 1, exclude_max=True), max_size=20), st.floats(0, 1))
def test_draws(randoms: list[float], share: float) -> None:
    assert cascade.drawn(randoms, share) == [row for row, random in enumerate(randoms) if random < share]
    assert cascade.drawn(randoms, 0.0) == []
    assert cascade.drawn(randoms, 1.0) == list(range(len(randoms)))


def test_the_confidence_of_a_request_is_its_least_confident_rows_and_zero_when_one_has_none() -> None:
    assert cascade.least([0.5, 0.25]) == 0.25
    assert cascade.least([0.5, float("nan")]) == 0.0
    assert cascade.least([float("nan"), 0.5]) == 0.0


def test_rows_of_the_cloud_that_are_no_answer() -> None:
    array = np.array([[1, 2], [np.nan, 1], [np.inf, 0], [0, 0]], np.float32)
    assert cascade.usable_rows(array).tolist() == [True, False, False, True]
    assert cascade.usable_rows(np.zeros((2, 0), np.float32)).tolist() == [False, False]
    assert cascade.usable_rows(np.zeros((2, 3), np.int64)).tolist() == [True, True]
