from __future__ import annotations

import pytest

from cloud_core.policy.admission import (
    Backlog,
    Tenant,
    authenticate,
    by_token,
    check_deadline,
    expected_answer_at,
    take_rows,
)
from penstock.errors import DeadlineExceeded, InvalidInput, QuotaExceeded, Unauthenticated
from penstock.policy.service_time import ServiceTime
from penstock.policy.token_bucket import BucketState, TokenBucket

SHOP = Tenant(name="shop", bucket=TokenBucket(rate=10.0, burst=20.0))
TENANTS = by_token([("a-long-secret", SHOP)])


@pytest.mark.parametrize("value", ["Bearer a-long-secret", "bearer a-long-secret", "BEARER  a-long-secret "])
def test_a_known_token_is_its_tenant(value: str) -> None:
    assert authenticate(TENANTS, value) is SHOP


@pytest.mark.parametrize(
    "value", ["", "Bearer ", "a-long-secret", "Basic a-long-secret", "Bearer a-long-secre", "Bearer \udcff", "Bearer é"]
)
def test_anything_else_is_nobody_and_the_refusal_names_nothing(value: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        authenticate(TENANTS, value)
    assert "shop" not in caught.value.message


def test_tokens_are_not_kept() -> None:
    assert b"a-long-secret" not in b"".join(TENANTS)


def test_a_tenant_over_its_rate_is_told_when_to_come_back() -> None:
    state = take_rows(SHOP, BucketState(tokens=20.0, at=0.0), 20, 0.0)
    with pytest.raises(QuotaExceeded) as caught:
        take_rows(SHOP, state, 5, 0.1)
    error = caught.value
    assert (error.limit, error.remaining, error.reason) == (20, 1, "rejected-quota")
    assert error.reset_s == pytest.approx(0.4)
    assert take_rows(SHOP, state, 5, 0.1 + error.reset_s).tokens == pytest.approx(0.0, abs=1e-6)


def test_more_rows_than_a_burst_are_a_bad_request_since_waiting_would_not_help() -> None:
    with pytest.raises(InvalidInput, match="20 at once"):
        take_rows(SHOP, BucketState(tokens=20.0, at=0.0), 21, 0.0)


def test_a_tenant_without_a_rate_is_not_limited() -> None:
    state = BucketState(tokens=0.0, at=0.0)
    assert take_rows(Tenant(name="free"), state, 10**9, 0.0) is state


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
