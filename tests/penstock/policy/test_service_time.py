from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import DeadlineExceeded
from penstock.policy.service_time import Backlog, ServiceTime, check_deadline, expected_answer_at, fitted

SECONDS = st.floats(1e-6, 10.0)


@given(SECONDS, SECONDS, st.integers(2, 512))
def test_the_fitted_line_goes_through_the_full_batch_and_is_never_negative(one: float, full: float, rows: int) -> None:
    service = fitted(one, full_rows=rows, full_s=full)
    assert service.of(rows) == pytest.approx(full)
    assert min(service.fixed_s, service.per_row_s) >= -1e-12


def test_the_fitted_line_goes_through_one_row_too() -> None:
    service = fitted(0.002, full_rows=11, full_s=0.012)
    assert service.of(1) == pytest.approx(0.002)
    assert service.of(6) == pytest.approx(0.007)


@given(SECONDS, st.lists(SECONDS, min_size=1, max_size=200))
def test_the_estimate_stays_within_what_was_measured(first: float, measured: list[float]) -> None:
    service = ServiceTime(fixed_s=first)
    for took_s in measured:
        service = service.observed(1, took_s)
    assert min(first, *measured) * 0.999 <= service.of(1) <= max(first, *measured) * 1.001


def test_the_estimate_follows_a_lasting_change() -> None:
    service = ServiceTime(fixed_s=0.001, per_row_s=0.0001)
    for _ in range(100):
        service = service.observed(10, 0.02)
    assert service.of(10) == pytest.approx(0.02, rel=0.01)
    assert service.of(0) == pytest.approx(0.01, rel=0.01)  # its shape is kept


def test_an_unmeasured_service_learns_from_its_first_batch() -> None:
    assert ServiceTime().observed(8, 0.5).of(1) == 0.5


def test_what_is_measured_alone_after_refusals_is_believed() -> None:
    assert ServiceTime(fixed_s=900.0, per_row_s=100.0).corrected(1, 0.5).of(1) == pytest.approx(0.5)
    assert ServiceTime().corrected(8, 0.5).of(1) == 0.5


@pytest.mark.parametrize(
    ("backlog", "rows", "expected"),
    [
        (Backlog(rows=0, max_batch_rows=4), 1, 1.0),
        (Backlog(rows=0, max_batch_rows=4, busy_until=12.5), 1, 3.5),
        (Backlog(rows=0, max_batch_rows=4, busy_until=9.0), 1, 1.0),  # overrun: done any moment
        (Backlog(rows=3, max_batch_rows=4), 1, 1.0),  # joins the batch that waits
        (Backlog(rows=4, max_batch_rows=4), 1, 2.0),
        (Backlog(rows=3, max_batch_rows=4), 2, 2.0),  # does not fit into it
        (Backlog(rows=9, max_batch_rows=4), 3, 3.0),
    ],
)
def test_when_an_answer_is_expected(backlog: Backlog, rows: int, expected: float) -> None:
    assert expected_answer_at(backlog, rows, ServiceTime(fixed_s=1.0), now=10.0) == pytest.approx(10.0 + expected)


def test_a_deadline_is_met_missed_or_over() -> None:
    check_deadline(answer_at=11.0, deadline=11.0, now=10.0)
    with pytest.raises(DeadlineExceeded, match="would take about 1100"):
        check_deadline(answer_at=11.1, deadline=11.0, now=10.0)
    with pytest.raises(DeadlineExceeded, match="passed"):
        check_deadline(answer_at=10.0, deadline=10.0, now=10.0)
