"""Where a graph is cut: the plan against trying everything, on small graphs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph import stages
from compiler.graph.stages import DoesNotFit, Plan, Work


def random_work(seed: int, nodes: int) -> Work:
    """A graph with skips, shared constants, several inputs and an output that is made early."""
    source = np.random.default_rng(seed)
    made = [frozenset({f"t{index}"} | ({f"u{index}"} if source.random() < 0.2 else set())) for index in range(nodes)]
    given_names = [f"x{index}" for index in range(int(source.integers(1, 3)))]
    reads = []
    for index in range(nodes):
        before = given_names + sorted(name for names in made[:index] for name in names)
        reads.append(frozenset(source.choice(before, size=min(len(before), int(source.integers(1, 4))), replace=False)))
    constants = [f"w{index}" for index in range(nodes)]
    weights = [
        frozenset(source.choice(constants, size=int(source.integers(0, 3)), replace=False)) for _ in range(nodes)
    ]
    tensors = given_names + sorted(name for names in made for name in names)
    return Work(
        reads=reads,
        makes=made,
        weights=weights,
        given=frozenset(given_names),
        wanted=frozenset({f"t{nodes - 1}", f"t{int(source.integers(0, nodes))}"}),
        tensor_bytes={name: int(source.integers(1, 100)) for name in tensors},
        weight_bytes={name: int(source.integers(1, 1000)) for name in constants},
    )


def measured(work: Work, bounds: tuple[int, ...]) -> Plan:
    """Crossing bytes and memory by their definitions."""
    present = stages.alive(work)

    def size(names: frozenset[str]) -> int:
        return sum(work.tensor_bytes[name] for name in names)

    memory = []
    for start, stop in itertools.pairwise(bounds):
        constants = frozenset().union(*work.weights[start:stop])
        peak = max(
            size(present[index] | present[index + 1] | work.reads[index] | work.makes[index])
            for index in range(start, stop)
        )
        memory.append(sum(work.weight_bytes[name] for name in constants) + peak)
    crossing = tuple(size(present[cut]) for cut in bounds[1:-1])
    return Plan(bounds=bounds, crossing_bytes=crossing, memory_bytes=tuple(memory))


def everything(work: Work, count: int) -> list[Plan]:
    inner = [place for place in range(1, work.nodes) if place not in work.forbidden]
    return [measured(work, (0, *cuts, work.nodes)) for cuts in itertools.combinations(inner, count - 1)]


@settings(max_examples=150)
@given(seed=st.integers(0, 10**6), nodes=st.integers(2, 9), count=st.integers(1, 4), tightness=st.floats(0.5, 1.5))
def test_the_plan_is_the_best_of_all(seed: int, nodes: int, count: int, tightness: float) -> None:
    work = random_work(seed, nodes)
    if nodes < count:
        assert stages.plan(work, count) == DoesNotFit(largest_bytes=None)
        return
    plans = everything(work, count)
    even = min(max(plan.memory_bytes) for plan in plans)
    limits = [int(even * tightness * (1 + 0.2 * device)) for device in range(count)]
    fitting = [p for p in plans if all(have <= limit for have, limit in zip(p.memory_bytes, limits, strict=True))]
    found = stages.plan(work, count, limits=limits)
    if not fitting:
        assert found == DoesNotFit(largest_bytes=even)
        return
    assert isinstance(found, Plan)
    assert found == measured(work, found.bounds)
    best = min((sum(plan.crossing_bytes), max(plan.memory_bytes)) for plan in fitting)
    assert (sum(found.crossing_bytes), max(found.memory_bytes)) == best


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), nodes=st.integers(4, 9))
def test_without_limits_stages_are_nearly_even_and_least_crosses(seed: int, nodes: int) -> None:
    work = random_work(seed, nodes)
    plans = everything(work, 3)
    even = min(max(plan.memory_bytes) for plan in plans)
    found = stages.plan(work, 3)
    assert isinstance(found, Plan)
    assert max(found.memory_bytes) <= 1.1 * even
    least = min(sum(plan.crossing_bytes) for plan in plans if max(plan.memory_bytes) <= 1.1 * even)
    assert sum(found.crossing_bytes) == least


def line(sizes: list[int]) -> Work:
    """A chain; ``sizes`` of what each node makes."""
    names = [f"t{index}" for index in range(len(sizes))]
    return Work(
        reads=[frozenset({name}) for name in ["x", *names[:-1]]],
        makes=[frozenset({name}) for name in names],
        weights=[frozenset({f"w{index}"}) for index in range(len(sizes))],
        given=frozenset({"x"}),
        wanted=frozenset({names[-1]}),
        tensor_bytes={"x": 1} | dict(zip(names, sizes, strict=True)),
        weight_bytes={f"w{index}": 100 for index in range(len(sizes))},
    )


def test_the_waist_of_a_chain_is_cut() -> None:
    found = stages.plan(line([50, 50, 2, 50, 50, 50]), 2, limits=(1000, 1000))
    assert isinstance(found, Plan)
    assert (found.bounds, found.crossing_bytes) == ((0, 3, 6), (2,))


def test_a_forbidden_place_is_avoided() -> None:
    work = replace(line([50, 50, 2, 50, 50, 3]), forbidden=frozenset({3}))
    found = stages.plan(work, 2, limits=(1000, 1000))
    assert isinstance(found, Plan)
    assert 3 not in found.bounds


def test_devices_of_different_size_get_stages_that_fit() -> None:
    found = stages.plan(line([5] * 8), 2, limits=(250, 800))
    assert isinstance(found, Plan)
    assert found.memory_bytes[0] <= 250 < found.memory_bytes[1] <= 800


def test_a_constant_of_two_stages_counts_in_both_and_once_in_one() -> None:
    work = line([5, 5, 5, 5])
    work = replace(work, weights=[frozenset({"shared"})] * 4, weight_bytes={"shared": 100})
    found = stages.plan(work, 2)
    assert isinstance(found, Plan)
    assert [memory // 100 for memory in found.memory_bytes] == [1, 1]


@pytest.mark.parametrize("nodes", [3000])
def test_long_graphs_are_planned_within_bounds(nodes: int) -> None:
    work = line([10 + (index % 7) for index in range(nodes)])
    found = stages.plan(work, 4)
    assert isinstance(found, Plan)
    assert len(found.bounds) == 5
    assert max(found.memory_bytes) < 1.2 * min(found.memory_bytes)
