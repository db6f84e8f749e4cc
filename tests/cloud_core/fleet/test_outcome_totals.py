"""Outcome records are counted once, in whatever pieces they arrive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_core.fleet.outcome_totals import Record, fold
from penstock.wire.outcomes import OutcomeCounts

DIGESTS = [f"sha256:{n:064x}" for n in range(3)]
small = st.integers(0, 1000)
counts = st.builds(
    lambda audited, harm, kept: OutcomeCounts(kept=kept, audited=audited + harm, audit_harm=harm),
    small, small, small,
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(DIGESTS), counts), max_size=30), st.data())
def test_any_sequence_of_deliveries_gives_the_totals_of_one(
    content: list[tuple[str, OutcomeCounts]], data: st.DataObject
) -> None:
    records = [
        Record(sequence=n + 1, model="m", artifact_digest=digest, counts=c) for n, (digest, c) in enumerate(content)
    ]
    once = fold(records, durable_sequence=0, totals={})
    assert once.refused == ()
    totals: dict[str, OutcomeCounts] = {}
    durable = 0
    while durable < len(records):
        # a device sends what is not known to be durable, and some that is, up to any point
        first = data.draw(st.integers(0, durable))
        last = data.draw(st.integers(durable + 1, len(records)))
        part = data.draw(st.permutations(records[first:last]))
        folded = fold(part, durable_sequence=durable, totals=totals)
        totals.update(folded.totals)
        durable = folded.sequence
    assert totals == once.totals


@given(
    st.lists(
        st.builds(
            Record,
            sequence=st.integers(0, 2**64 - 1),
            model=st.text(max_size=5),
            artifact_digest=st.one_of(st.sampled_from(DIGESTS), st.text(max_size=10)),
            counts=st.builds(OutcomeCounts, kept=st.integers(0, 2**64 - 1), audited=st.integers(0, 2**64 - 1)),
        ),
        max_size=20,
    ),
    st.integers(0, 2**62 - 1),
)
def test_nonsense_never_breaks_the_fold_and_the_sequence_never_goes_back(records: list[Record], durable: int) -> None:
    folded = fold(records, durable_sequence=durable, totals={})
    assert durable <= folded.sequence < 2**62
    assert all(max(c.requests, c.audited) <= 2**62 for c in folded.totals.values())


def test_totals_stop_at_a_bound_that_fits_the_database() -> None:
    nearly = OutcomeCounts(kept=2**62 - 1)
    assert (nearly + nearly).requests == 2**62


def test_counts_since_a_baseline_are_never_negative() -> None:
    assert OutcomeCounts(kept=5).since(OutcomeCounts(kept=7, audited=1)) == OutcomeCounts()
