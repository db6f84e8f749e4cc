"""The gate: budgets, objectives, refusals in words, and the bisection that sends operators back to float."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.artifact.evaluation import Drop
from compiler.measure import gate
from compiler.measure.gate import Budget, Measured

SPEED, SIZE = Budget(max_drop=0.01, objective="speed"), Budget(max_drop=0.01, objective="size")


def drop(value: float) -> Drop:
    return Drop(value=value, low=value - 0.01, high=value + 0.01, n=1000)


def measured(
    name: str, *, size: int = 100, cost: float | None = 0.0, ms: float | None = 1.0, quantized: int | None = 50
) -> Measured:
    return Measured(
        name=name,
        size_bytes=size,
        drop=None if cost is None else drop(cost),
        latency_ms=ms,
        quantized_bytes=quantized,
    )


PARENT = measured("fp32", size=400, cost=None, ms=2.0, quantized=None)


def test_the_fastest_candidate_within_the_budget_ships_and_every_other_is_told_why():
    candidates = [
        PARENT,
        measured("int8 minmax", ms=0.5, cost=0.05),
        measured("int8 entropy", ms=0.8),
        measured("int8-dynamic", ms=2.5),
        measured("int4", ms=0.9, quantized=0),
    ]
    verdict = gate.choose(candidates, PARENT, SPEED)
    assert verdict.chosen == 2
    assert verdict.reasons == (
        "fits, but int8 entropy is 2.50x as fast",
        "costs 5.00 points, 1.00 points allowed",
        "ships",
        "slower than its parent (0.80x of its speed)",
        "no weight was quantized",
    )


def test_nothing_slower_than_its_parent_ships_unless_size_is_asked_for():
    slow = measured("int8", ms=9.0, size=10)
    assert gate.choose([PARENT, slow], PARENT, SPEED).chosen == 0
    assert gate.choose([PARENT, slow], PARENT, SIZE).chosen == 1


def test_a_candidate_that_is_no_smaller_is_refused_when_size_is_asked_for():
    large = measured("int8", size=500)
    verdict = gate.choose([large], PARENT, SIZE)
    assert verdict.chosen is None
    assert verdict.reasons == ("no smaller than its parent (500 bytes, parent 400)",)


def test_among_equally_fast_ones_the_smaller_ships_then_the_one_that_costs_less():
    near = [
        measured("a", ms=1.0, size=100),
        measured("b", ms=1.03, size=80),
        measured("c", ms=1.04, size=80, cost=-0.1),
    ]
    assert gate.choose(near, PARENT, SPEED).chosen == 2


def test_where_nothing_can_be_timed_the_last_that_fits_is_taken():
    untimed = [measured("fp32", ms=None, cost=0.0, quantized=None), measured("int8", ms=None), measured("x", cost=0.5)]
    verdict = gate.choose(untimed, measured("fp32", ms=None, cost=None, quantized=None), SPEED)
    assert verdict.chosen == 1
    assert verdict.reasons[0] == "fits, but int8 was asked for after it"


@given(
    costs=st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=6),
    times=st.lists(st.floats(0.1, 5), min_size=6, max_size=6),
)
def test_whatever_ships_keeps_the_budget_and_is_no_slower(costs, times):
    candidates = [measured(str(i), cost=c, ms=t) for i, (c, t) in enumerate(zip(costs, times, strict=False))]
    verdict = gate.choose(candidates, PARENT, SPEED)
    fit = [c for c in candidates if c.drop.value <= 0.01 and c.latency_ms <= 1.02 * PARENT.latency_ms]
    assert (verdict.chosen is None) == (not fit)
    if verdict.chosen is not None:
        assert candidates[verdict.chosen] in fit
        assert candidates[verdict.chosen].latency_ms <= 1.05 * min(c.latency_ms for c in fit)
    assert all(verdict.reasons)


@given(count=st.integers(1, 200), data=st.data())
def test_bisection_finds_the_smallest_number_that_fits_in_few_probes(count, data):
    enough = data.draw(st.integers(1, count + 1))  # count + 1: nothing fits
    tried = {0: False}
    probes = 0
    while (k := gate.next_probe(tried, count)) is not None:
        assert 1 <= k <= count
        assert k not in tried
        tried[k] = k >= enough
        probes += 1
    fits = [k for k, fitted in tried.items() if fitted]
    assert (min(fits) if fits else count + 1) == enough
    assert probes <= 2 * count.bit_length() + 1


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_a_paired_drop_is_the_difference_of_shares_and_lies_in_its_interval(rows):
    parent, candidate = (np.array(column) for column in zip(*rows, strict=True))
    found = gate.paired_drop(parent, candidate)
    assert found.value == pytest.approx(parent.mean() - candidate.mean())
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_the_interval_of_a_paired_drop_covers_the_truth_as_often_as_it_says():
    source = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        parent = source.random(600) < 0.9
        candidate = np.where(source.random(600) < 0.05, source.random(600) < 0.6, parent)
        truth = 0.9 - (0.95 * 0.9 + 0.05 * 0.6)
        found = gate.paired_drop(parent, candidate)
        hits += found.low <= truth <= found.high
    assert hits >= 0.92 * 400
