"""Deadlines and priorities of a request, whatever transport it came by."""

from __future__ import annotations

import pytest

from penstock.errors import DeadlineExceeded, InvalidInput
from penstock.wire.inference import InferRequest, earliest_timeout_s, priority_of


def request(**parameters: object) -> InferRequest:
    return InferRequest(model="m", inputs={}, parameters=parameters)  # type: ignore[arg-type]


def test_the_earliest_limit_wins() -> None:
    assert earliest_timeout_s(request(timeout=2_000_000), 5.0, None, 3.0) == 2.0
    assert earliest_timeout_s(request(timeout=9_000_000), 5.0) == 5.0


def test_no_limit_at_all_is_none_and_zero_means_none() -> None:
    assert earliest_timeout_s(request()) is None
    assert earliest_timeout_s(request(timeout=0)) is None


@pytest.mark.parametrize("expired", [-1.0, 0.0])
def test_an_expired_limit_is_never_clamped(expired: float) -> None:
    with pytest.raises(DeadlineExceeded, match="nothing was executed"):
        earliest_timeout_s(request(), expired)


@pytest.mark.parametrize("bad", ["soon", True])
def test_a_timeout_that_is_no_number_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match="microseconds"):
        earliest_timeout_s(request(timeout=bad))


def test_priority_defaults_to_zero() -> None:
    assert priority_of(request()) == 0
    assert priority_of(request(priority=1)) == 1


@pytest.mark.parametrize("bad", [-1, 1.5, "high", True])
def test_a_priority_that_is_no_level_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match="priority"):
        priority_of(request(priority=bad))
