from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.policy.change_detection import FRESH, LARGEST, Evidence, strength, updated, updated_by_share

BOUND = 0.02


def after(evidence: Evidence, rate: float, n: int, rng: random.Random) -> Evidence:
    for _ in range(n):
        evidence = updated(evidence, harm=int(rng.random() < rate), n=1, bound=BOUND)
    return evidence


def waits(evidence: Evidence, rate: float, limit: float, rng: random.Random) -> int:
    for number in range(1, 100_000):
        evidence = updated(evidence, harm=int(rng.random() < rate), n=1, bound=BOUND)
        if strength(evidence) >= limit:
            return number
    raise AssertionError("never seen")


def test_a_change_is_seen_as_fast_after_twenty_thousand_healthy_audits_as_on_the_first_day() -> None:
    rng = random.Random(1)
    old = after(FRESH, 0.01, 20_000, rng)
    for fresh_or_old in (FRESH, old):
        seen = sorted(waits(fresh_or_old, 0.2, 1e6, rng) for _ in range(21))
        assert seen[10] < 70, seen


def test_false_alarms_at_the_bound_are_as_rare_as_promised() -> None:
    rng = random.Random(2)
    run_length, alarms, audits, evidence = 2_000.0, 0, 200_000, FRESH
    for _ in range(audits):
        evidence = updated(evidence, harm=int(rng.random() < BOUND), n=1, bound=BOUND)
        if strength(evidence) >= run_length:
            alarms, evidence = alarms + 1, FRESH
    assert alarms <= audits / run_length


@given(n=st.integers(1, 30), bound=st.floats(1e-4, 0.9), earlier=st.integers(0, 30))
def test_evidence_grows_by_one_an_outcome_on_average_when_the_claim_is_just_true(
    n: int, bound: float, earlier: int
) -> None:
    """What theorem 2.4 needs, exactly: also for outcomes that are taken in at once."""
    before = updated(FRESH, harm=earlier // 3, n=earlier, bound=bound)
    chance = [math.comb(n, harm) * bound**harm * (1 - bound) ** (n - harm) for harm in range(n + 1)]
    mean = math.fsum(p * strength(updated(before, harm=harm, n=n, bound=bound)) for harm, p in enumerate(chance))
    assert mean == pytest.approx(strength(before) + n, rel=1e-6)


def test_a_claim_of_never_is_refuted_by_one_case_and_one_of_always_by_none() -> None:
    assert strength(updated(FRESH, harm=1, n=1, bound=0.0)) == LARGEST
    assert updated(FRESH, harm=0, n=1, bound=0.0) == FRESH
    assert updated(FRESH, harm=10, n=10, bound=1.0) == FRESH


def test_evidence_stays_a_number_whatever_is_reported() -> None:
    assert strength(updated(FRESH, harm=2**40, n=2**40, bound=0.02)) == LARGEST
    assert strength(updated((LARGEST,) * len(FRESH), harm=0, n=2**40, bound=0.02)) == 0.0


@pytest.mark.parametrize(
    ("harm", "n", "bound", "evidence"), [(2, 1, 0.1, FRESH), (-1, 1, 0.1, FRESH), (0, 1, 1.1, FRESH), (0, 1, 0.1, ())]
)
def test_what_cannot_be_is_refused(harm: int, n: int, bound: float, evidence: Evidence) -> None:
    with pytest.raises(InvalidInput):
        updated(evidence, harm=harm, n=n, bound=bound)


# --- outcomes that are numbers from 0 to 1


@given(share=st.sampled_from([0.0, 1.0]), bound=st.floats(1e-4, 0.9), earlier=st.integers(0, 30))
def test_a_share_of_0_or_1_is_an_outcome_as_any_other(share: float, bound: float, earlier: int) -> None:
    before = updated(FRESH, harm=earlier // 3, n=earlier, bound=bound)
    assert updated_by_share(before, share=share, bound=bound) == updated(before, harm=int(share), n=1, bound=bound)


@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    bound=st.floats(1e-3, 0.9),
    earlier=st.integers(0, 30),
)
def test_evidence_grows_by_one_an_outcome_on_average_whatever_the_shares_are_where_their_mean_is_the_bound(
    shares: list[float], bound: float, earlier: int
) -> None:
    """What theorem 2.4 needs: shares below and above the bound, weighted so that their mean is exactly it."""
    low, high = min(*shares, bound), max(*shares, bound)
    chance = 0.5 if high == low else (bound - low) / (high - low)
    before = updated(FRESH, harm=earlier // 3, n=earlier, bound=bound)
    mean = math.fsum(
        p * strength(updated_by_share(before, share=share, bound=bound))
        for p, share in ((chance, high), (1 - chance, low))
    )
    assert mean == pytest.approx(strength(before) + 1, rel=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InvalidInput, match="not between 0 and 1"):
        updated_by_share(FRESH, share=share, bound=0.1)


def test_a_share_says_nothing_against_a_bound_of_1_and_everything_against_one_of_0() -> None:
    assert updated_by_share(FRESH, share=0.5, bound=1.0) == FRESH
    assert strength(updated_by_share(FRESH, share=0.5, bound=0.0)) >= LARGEST / 10
