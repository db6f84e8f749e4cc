"""Who may enter."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.policy import admission
from edge_agent.policy.admission import Limits, Load
from penstock.errors import DeadlineExceeded, InvalidInput, MemoryFull, QueueFull, TooLarge, Unavailable

LIMITS = Limits(max_body_bytes=1000, max_queue_rows=10, max_rows_per_request=8, max_inflight_bytes=16_000)


def test_an_empty_house_lets_everybody_in() -> None:
    assert admission.on_arrival(Load(), LIMITS, content_length=1000) is None
    assert admission.on_arrival(Load(), LIMITS, content_length=None) is None


def test_refusals_on_arrival() -> None:
    draining = admission.on_arrival(Load(is_draining=True), LIMITS, content_length=1)
    assert isinstance(draining, Unavailable)
    assert draining.retry_after_s
    too_large = admission.on_arrival(Load(), LIMITS, content_length=1001)
    assert isinstance(too_large, TooLarge)
    assert too_large.limit_bytes == 1000
    for load in (Load(rows=10), Load(requests=10), Load(body_bytes=15_500)):
        refused = admission.on_arrival(load, LIMITS, content_length=600)
        assert isinstance(refused, QueueFull)
        assert refused.retry_after_s


def test_a_body_of_unknown_length_counts_as_the_largest() -> None:
    assert isinstance(admission.on_arrival(Load(body_bytes=15_500), LIMITS, content_length=None), QueueFull)
    assert admission.on_arrival(Load(body_bytes=15_500), LIMITS, content_length=500) is None


def test_bytes_in_flight_are_bounded_and_one_largest_body_always_fits() -> None:
    limits = replace(LIMITS, max_inflight_bytes=800)
    assert admission.on_arrival(Load(), limits, content_length=1000) is None
    refused = admission.on_arrival(Load(body_bytes=1), limits, content_length=1000)
    assert isinstance(refused, MemoryFull)
    assert refused.code == "memory-full"
    assert refused.retry_after_s


def test_rows() -> None:
    assert isinstance(admission.on_rows(Load(), LIMITS, rows=9), InvalidInput)
    assert admission.on_rows(Load(rows=2), LIMITS, rows=8) is None
    assert isinstance(admission.on_rows(Load(rows=3), LIMITS, rows=8), QueueFull)


def test_a_request_larger_than_the_queue_may_run_alone() -> None:
    limits = replace(LIMITS, max_queue_rows=4)
    assert admission.on_rows(Load(), limits, rows=8) is None
    assert isinstance(admission.on_rows(Load(rows=1), limits, rows=8), QueueFull)


@given(st.lists(st.integers(1, 12), max_size=40))
def test_rows_in_flight_never_pass_the_limit(requests: list[int]) -> None:
    load = Load()
    for rows in requests:
        if (
            admission.on_arrival(load, LIMITS, content_length=1) is None
            and admission.on_rows(load, LIMITS, rows=rows) is None
        ):
            load.rows += rows
        assert load.rows <= LIMITS.max_queue_rows


def test_a_deadline_that_has_passed_is_never_the_most_urgent() -> None:
    assert isinstance(admission.on_deadline(5.0, now=5.0), DeadlineExceeded)
    assert admission.on_deadline(5.0, now=4.9) is None
    assert admission.on_deadline(None, now=1e9) is None
