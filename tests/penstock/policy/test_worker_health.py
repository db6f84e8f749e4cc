"""When a worker counts as hung, and when one that failed is started again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.policy.retry import Backoff
from penstock.policy.worker_health import LOOKS, Restarts, Watch

RESTARTS = Restarts(limit=2, steady_s=60.0, backoff=Backoff(base_s=0.5, max_s=30.0))


def seen(*looks: tuple[int, bool]) -> Watch:
    watch = Watch()
    for progress, has_work in looks:
        watch = watch.look(progress=progress, has_work=has_work)
    return watch


def test_work_that_does_not_move_is_a_hang() -> None:
    assert not seen(*[(7, True)] * LOOKS).is_hung, "the first look only sees where it stands"
    assert seen(*[(7, True)] * (LOOKS + 1)).is_hung


def test_an_idle_worker_stands_still_and_does_not_hang() -> None:
    assert not seen(*[(7, False)] * 1000).is_hung
    assert not seen(*[(7, False)] * 1000, *[(7, True)] * (LOOKS - 1)).is_hung
    assert seen(*[(7, False)] * 1000, *[(7, True)] * LOOKS).is_hung


@given(st.lists(st.integers(1, LOOKS - 1), min_size=1, max_size=50))
def test_a_slow_worker_never_hangs_however_long_its_line_is(pauses: list[int]) -> None:
    looks = [(step, True) for step, pause in enumerate(pauses) for _ in range(pause)]
    watch = Watch()
    for progress, has_work in looks:
        watch = watch.look(progress=progress, has_work=has_work)
        assert not watch.is_hung


def test_restarts_are_bounded_and_wait_longer_each_time() -> None:
    restarts, upper_s = RESTARTS, []
    while not (restarts := restarts.after_failure(was_ready_s=1.0)).is_over:
        upper_s.append(restarts.delay_s(1.0))
    assert upper_s == [0.5, 1.0]
    assert restarts.failures == 3


def test_beyond_the_limit_there_is_a_slow_try_now_and_then() -> None:
    restarts = replace(RESTARTS, slow_s=300.0)
    for _ in range(10):
        restarts = restarts.after_failure(was_ready_s=0.0)
    assert (restarts.is_slow, restarts.is_over) == (True, False)
    assert (restarts.delay_s(0.0), restarts.delay_s(1.0)) == (150.0, 300.0)
    assert not restarts.after_failure(was_ready_s=61.0).is_slow


def test_a_worker_that_was_well_for_long_begins_a_new_row() -> None:
    restarts = RESTARTS.after_failure(was_ready_s=0.0).after_failure(was_ready_s=0.0)
    assert restarts.after_failure(was_ready_s=61.0).failures == 1
    assert restarts.after_failure(was_ready_s=59.0).is_over


def test_the_time_in_which_it_hung_does_not_count_as_well() -> None:
    restarts = RESTARTS.after_failure(was_ready_s=70.0, stood_still_s=65.0).after_failure(
        was_ready_s=70.0, stood_still_s=65.0
    )
    assert restarts.after_failure(was_ready_s=70.0, stood_still_s=65.0).is_over


def test_one_that_never_answered_was_never_well() -> None:
    restarts = Restarts(limit=1, steady_s=0.0, backoff=Backoff())
    assert restarts.after_failure(was_ready_s=0.0).after_failure(was_ready_s=0.0).is_over


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError):
        Restarts(limit=-1, steady_s=1.0, backoff=Backoff())
