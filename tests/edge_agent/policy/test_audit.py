from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.policy.audit import MAX_AUDITS, Audit, counted, find, kept, noted, noted_share, restored, told
from penstock.policy.change_detection import FRESH, updated_by_share
from penstock.wire.outcomes import NOTHING, OutcomeCounts

PROMISE = ("sha256:a", "sha256:c", 0.02)


def audit(number: int = 0, *, has_alarmed: bool = False) -> Audit:
    return Audit(
        artifact_digest=f"sha256:{number}", certificate_digest="sha256:c", max_harm=0.02, has_alarmed=has_alarmed
    )


def test_an_alarm_is_final() -> None:
    alarmed = noted(audit(), audited=20, harm=20, bound=0.02, run_length=1000)
    assert alarmed.has_alarmed
    assert noted(alarmed, audited=10**6, harm=0, bound=0.02, run_length=1000) == alarmed


def test_what_is_remembered_is_bounded_and_an_alarm_goes_last() -> None:
    audits = kept((), audit(has_alarmed=True))
    for number in range(1, 3 * MAX_AUDITS):
        audits = kept(audits, audit(number))
    assert len(audits) == MAX_AUDITS
    assert find(audits, audit().promise) == audit(has_alarmed=True)
    assert audits[-1] == audit(3 * MAX_AUDITS - 1)


def test_a_device_that_the_previous_release_distrusted_stays_distrusted_once() -> None:
    counts = OutcomeCounts(kept=20, audited=20, audit_harm=10)
    assert restored((), PROMISE, counts, 0.02).has_alarmed
    assert not restored((audit(),), PROMISE, counts, 0.02).has_alarmed  # another certificate of the same artifact
    assert restored((), PROMISE, NOTHING, 0.02).evidence == FRESH


def test_an_operators_word_counts_once_and_evidence_after_it_counts() -> None:
    broken = replace(Audit(artifact_digest="a", certificate_digest="c", max_harm=0.02), has_alarmed=True)
    trusted = told(broken, is_distrusted=False, trusted_at=7.0)
    assert (trusted.has_alarmed, trusted.evidence, trusted.trusted_at) == (False, FRESH, 7.0)
    # the fleet service repeats it in every reply
    broken_again = replace(trusted, has_alarmed=True)
    assert told(broken_again, is_distrusted=False, trusted_at=7.0) == broken_again
    assert not told(broken_again, is_distrusted=False, trusted_at=9.0).has_alarmed
    # a service that lost its state says nothing, which takes nothing back
    assert told(trusted, is_distrusted=False, trusted_at=0.0) == trusted


def test_an_operators_word_for_a_device_is_not_one_for_the_fleet() -> None:
    audit = Audit(artifact_digest="a", certificate_digest="c", max_harm=0.02)
    assert told(audit, is_distrusted=True, trusted_at=7.0).is_distrusted


def test_an_answer_that_is_harmful_by_a_share_is_evidence_and_an_alarm_is_final() -> None:
    once = noted_share(audit(), share=0.3, bound=0.1, run_length=100.0)
    assert once.evidence == updated_by_share(FRESH, share=0.3, bound=0.1)
    assert not once.has_alarmed
    while not once.has_alarmed:
        once = noted_share(once, share=0.3, bound=0.1, run_length=100.0)
    assert noted_share(once, share=0.0, bound=0.1, run_length=100.0) == once


@given(share=st.floats(0, 1), random=st.floats(0, 1, exclude_max=True))
def test_it_counts_as_harm_with_the_chance_that_it_has(share: float, random: float) -> None:
    assert counted(share, random) == (1 if random < share else 0)
    assert (counted(0.0, random), counted(1.0, random)) == (0, 1)
