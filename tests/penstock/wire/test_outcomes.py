"""The definition of the counters, and that the wire agrees with it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.rpc.pb import fleet_pb2
from penstock.wire.outcomes import (
    COLUMNS,
    COUNTERS,
    HEADINGS,
    MAX_TOTAL,
    MEANINGS,
    NOTHING,
    OUTCOMES,
    OutcomeCounts,
    from_columns,
    summed,
)

COUNTS = st.builds(OutcomeCounts, **{name: st.integers(0, MAX_TOTAL) for name in COUNTERS})


def test_the_message_has_exactly_the_fields_of_the_definition() -> None:
    assert {field.name for field in fleet_pb2.OutcomeCounts.DESCRIPTOR.fields} == set(COLUMNS)


def test_every_counter_has_a_meaning_and_a_heading() -> None:
    assert all(MEANINGS[name] for name in COUNTERS)
    assert all(HEADINGS[name] for name in COLUMNS)
    assert len(set(HEADINGS.values())) == len(COLUMNS)


@given(COUNTS)
def test_counts_come_back_from_a_message_as_they_were(counts: OutcomeCounts) -> None:
    message = fleet_pb2.OutcomeCounts.FromString(fleet_pb2.OutcomeCounts(**counts.columns()).SerializeToString())
    assert from_columns(message) == counts
    assert message.requests == counts.requests


def test_every_row_has_one_outcome_and_an_audit_is_not_one() -> None:
    counts = OutcomeCounts(**dict.fromkeys(COUNTERS, 1))
    assert counts.requests == len(OUTCOMES)
    assert not {"audited", "audit_harm"} & set(OUTCOMES)


@given(COUNTS, COUNTS)
def test_sums_stop_where_a_database_s_integers_still_hold_them(first: OutcomeCounts, second: OutcomeCounts) -> None:
    assert all(0 <= value <= MAX_TOTAL for value in (first + second).columns().values())
    assert first + NOTHING == first


@given(COUNTS, COUNTS)
def test_what_was_counted_since_a_baseline_is_never_negative(first: OutcomeCounts, second: OutcomeCounts) -> None:
    assert all(value >= 0 for value in first.since(second).columns().values())
    assert first.since(NOTHING) == first


def test_a_sum_of_none_is_nothing_and_of_several_all_of_them() -> None:
    one, two = OutcomeCounts(kept=1, audited=2), OutcomeCounts(kept=3, failed=4)
    assert summed([]) == OutcomeCounts()
    assert summed(iter([one])) == one
    assert summed([one, two, one]) == OutcomeCounts(kept=5, failed=4, audited=4)
