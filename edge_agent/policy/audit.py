"""What the audit of one certificate remembers, and how outcomes change it: a few numbers that are kept on disk.

Values and pure transitions only. They are kept with the model's state (``edge_agent.policy.model_state``) and not
beside the records for the fleet service: a lost outbox must not give a distrusted device its trust back. Each of
artifact, certificate and level makes it another promise, which begins without evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from penstock.policy import change_detection, sequential
from penstock.policy.change_detection import FRESH, Evidence
from penstock.wire.outcomes import OutcomeCounts

MAX_AUDITS = 16
"""Audits of one model that are remembered; the first to go are the oldest that found nothing."""

_ALPHA_BEFORE = 0.05  # of the test whose evidence an older release left in the outbox

Promise = tuple[str, str, float]
"""(artifact digest, certificate digest, level): what an audit is about."""


class Audit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds the evidence against one promise.

    Attributes:
        max_harm: the level of the certificate that is in use.
        evidence: as ``penstock.policy.change_detection`` has it.
        has_alarmed: the evidence reached the run length, which is final for this promise.
        is_distrusted: the fleet service said that the fleet's evidence is against this promise.
        trusted_at: the operator's word that this audit began after (UNIX seconds, the core's clock); 0 for none.
    """

    artifact_digest: str
    certificate_digest: str
    max_harm: float
    evidence: Evidence = FRESH
    has_alarmed: bool = False
    is_distrusted: bool = False
    trusted_at: float = 0.0

    @property
    def promise(self) -> Promise:
        """Return what makes an audit another one."""
        return self.artifact_digest, self.certificate_digest, self.max_harm


def find(audits: Iterable[Audit], promise: Promise) -> Audit | None:
    """Return what is remembered about a promise."""
    return next((audit for audit in audits if audit.promise == promise), None)


def restored(audits: Sequence[Audit], promise: Promise, counts: OutcomeCounts, bound: float) -> Audit:
    """Return what is remembered about a promise; a new audit where nothing is.

    Args:
        counts: what was counted for the artifact before. A release that kept no audits added everything up: a device
            that it distrusted stays distrusted.
        bound: the share of audited rows that may be harmful.
    """
    found = find(audits, promise)
    if found is not None:
        return found
    has_alarmed = not audits and sequential.crossed(counts.audit_harm, counts.audited, bound, _ALPHA_BEFORE)
    artifact_digest, certificate_digest, max_harm = promise
    return Audit(
        artifact_digest=artifact_digest,
        certificate_digest=certificate_digest,
        max_harm=max_harm,
        has_alarmed=has_alarmed,
    )


def noted(audit: Audit, *, audited: int, harm: int, bound: float, run_length: float) -> Audit:
    """Take drawn rows in whose harm is known.

    Args:
        bound: the share of them that may be harmful.
        run_length: audits until a false alarm, on average and at the least.
    """
    if audit.has_alarmed:
        return audit
    evidence = change_detection.updated(audit.evidence, harm=harm, n=audited, bound=bound)
    return replace(audit, evidence=evidence, has_alarmed=change_detection.strength(evidence) >= run_length)


def noted_share(audit: Audit, *, share: float, bound: float, run_length: float) -> Audit:
    """Take one drawn answer in that is harmful by a share, 0 to 1; the arguments are those of :func:`noted`."""
    if audit.has_alarmed:
        return audit
    evidence = change_detection.updated_by_share(audit.evidence, share=share, bound=bound)
    return replace(audit, evidence=evidence, has_alarmed=change_detection.strength(evidence) >= run_length)


def counted(share: float, random: float) -> int:
    """Say whether an answer that is harmful by a share counts as harm: with the probability of that share.

    Counters, records and a fleet's tests know whole rows. A coin with this chance is harmful as often on average, so
    that their promises hold, and only see a little later than the device itself.

    Args:
        random: uniform in [0, 1).
    """
    return int(random < share)


def told(audit: Audit, *, is_distrusted: bool, trusted_at: float) -> Audit:
    """Take in what the fleet service says about a promise. It says so in every reply.

    Args:
        trusted_at: when an operator trusted it; evidence from before another such word counts no more.
    """
    if trusted_at in (0.0, audit.trusted_at):
        return replace(audit, is_distrusted=is_distrusted)
    return replace(audit, is_distrusted=is_distrusted, trusted_at=trusted_at, evidence=FRESH, has_alarmed=False)


def kept(audits: Iterable[Audit], newest: Audit) -> tuple[Audit, ...]:
    """Return audits with the newest one in its place, as many as are remembered."""
    found = [audit for audit in audits if audit.promise != newest.promise] + [newest]
    while len(found) > MAX_AUDITS:
        found.remove(next((audit for audit in found[:-1] if not audit.has_alarmed), found[0]))
    return tuple(found)
