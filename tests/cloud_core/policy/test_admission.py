from __future__ import annotations

import pytest

from cloud_core.policy.admission import Tenant, authenticate, by_token, take_rows
from penstock.errors import InvalidInput, QuotaExceeded, Unauthenticated
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
