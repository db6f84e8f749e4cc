from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.slo import BUCKET_S, WINDOWS_S, Objectives, Record, alarms

PROMISED = Objectives(answered=0.99, latency_s=0.1, fast=0.9)


def recorded(*spans: tuple[float, int, str, float], now: float) -> tuple[Record, float]:
    """Requests by the span in which they came: seconds ago, how many, code, seconds that each took."""
    record = Record()
    for ago_s, count, code, took_s in sorted(spans, reverse=True):
        for _ in range(count):
            record.count(code, took_s, PROMISED, now - ago_s)
    return record, now


def rates(record: Record, now: float, objective: str) -> list[float | None]:
    return [one.rate for one in record.burning(PROMISED, now) if one.objective == objective]


def test_a_burn_rate_is_what_failed_over_what_may_fail() -> None:
    record, now = recorded((10.0, 95, "ok", 0.01), (10.0, 5, "internal", 0.01), now=100_000.0)
    assert rates(record, now, "answered") == pytest.approx([5.0] * 4)
    assert rates(record, now, "fast") == [0.0] * 4
    record, now = recorded((10.0, 50, "ok", 0.01), (10.0, 50, "ok", 0.2), now=100_000.0)
    assert rates(record, now, "fast") == pytest.approx([5.0] * 4)


def test_what_clients_do_wrong_says_nothing_about_the_service() -> None:
    wrong = [(10.0, 9, code, 0.0) for code in ("invalid-input", "not-found", "cancelled", "quota-exceeded")]
    record, now = recorded(*wrong, now=100_000.0)
    assert record.ever.requests == 0
    assert rates(record, now, "answered") == [None] * 4
    assert alarms(record.burning(PROMISED, now)) == ()


def test_what_failed_long_ago_is_in_the_long_windows_only_and_wakes_nobody_any_more() -> None:
    record, now = recorded((2000.0, 100, "internal", 0.0), (10.0, 100, "ok", 0.01), now=100_000.0)
    assert rates(record, now, "answered") == pytest.approx([0.0, 0.0, 50.0, 50.0])
    assert alarms(record.burning(PROMISED, now)) == ()


def test_an_outage_wakes_somebody_and_names_its_objective() -> None:
    record, now = recorded((10.0, 100, "unavailable", 0.0), (400.0, 100, "ok", 0.01), now=100_000.0)
    (alarm,) = alarms(record.burning(PROMISED, now))
    assert (alarm.objective, alarm.severity, alarm.window_s) == ("answered", "page", 3600.0)
    assert alarm.rate == pytest.approx(50.0)


def test_a_slow_burn_is_found_by_the_longer_pair() -> None:
    record, now = recorded((10.0, 8, "unavailable", 0.0), (20.0, 92, "ok", 0.01), now=100_000.0)
    (alarm,) = alarms(record.burning(PROMISED, now))
    assert (alarm.window_s, alarm.limit) == (21600.0, 6.0)
    assert alarm.rate == pytest.approx(8.0)


def test_one_failure_in_a_quiet_night_wakes_nobody() -> None:
    record, now = recorded((10.0, 1, "internal", 0.0), now=100_000.0)
    assert alarms(record.burning(PROMISED, now)) == ()


@given(
    st.lists(st.tuples(st.floats(0, 30_000), st.sampled_from(["ok", "internal", "invalid-input"])), max_size=200),
    st.floats(1e5, 1e6),
)
def test_windows_hold_what_came_within_them_to_within_a_bucket(came: list[tuple[float, str]], now: float) -> None:
    record = Record()
    for ago_s, code in sorted(came, reverse=True):
        record.count(code, 0.0, PROMISED, now - ago_s)
    counted = [ago_s for ago_s, code in came if code != "invalid-input"]
    for window_s in WINDOWS_S:
        held = record.within(window_s, now).requests
        assert sum(ago <= window_s - BUCKET_S for ago in counted) <= held <= sum(ago <= window_s for ago in counted)
