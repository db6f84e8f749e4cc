from __future__ import annotations

import pytest

from penstock.policy.parallelism import MAX_INSTANCES, instances, is_worth_it, thread_counts


@pytest.mark.parametrize(
    ("cpus", "counts"), [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (16, [2, 4, 8, 16])]
)
def test_threads_double_until_all_cpus_are_used(cpus: int, counts: list[int]) -> None:
    assert thread_counts(cpus) == counts


@pytest.mark.parametrize(("cpus", "threads", "wanted"), [(1, 1, 1), (2, 2, 1), (2, 1, 2), (16, 4, 4), (1, 4, 1)])
def test_instances_and_threads_fill_the_cpus(cpus: int, threads: int, wanted: int) -> None:
    assert instances(cpus, threads) == wanted


def test_weights_are_not_multiplied_without_end() -> None:
    assert instances(128, 1) == MAX_INSTANCES


def test_threads_are_spent_only_on_a_clear_gain() -> None:
    assert is_worth_it(0.040, 0.022)
    assert not is_worth_it(0.040, 0.038)
