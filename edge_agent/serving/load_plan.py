"""What is loaded for a model, whether its certificate may be used, and what is remembered against that. Values; where
they come from is the store's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.policy import audit as auditing
from edge_agent.policy.audit import Audit
from penstock.artifact import certificates
from penstock.artifact.certificates import Certificate, Subject
from penstock.artifact.manifests import Variant
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import CertificateMismatch, ConfigError
from penstock.runtime import TEXT_ENGINES
from penstock.wire.outcomes import OutcomeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to load.

    Attributes:
        version: the tag.
        files: what the variant is loaded from, verified.
        certificate_digest: of its manifest; "" where there is none.
        certificate: None where the artifact has none, or it cannot be read.
        subject: what a certificate of this variant has to be about, its cloud variant among it.
        damaged: what of it cannot be read on this disk, and what that means; "" when all of it can.
        shares_tokenizer: the cloud's variant reads texts by the same file, so that token ids mean the same to both.
    """

    model: str
    version: str
    artifact_digest: str
    variant: Variant
    files: VariantFiles
    certificate_digest: str
    certificate: Certificate | None
    subject: Subject
    damaged: str = ""
    shares_tokenizer: bool = True


def usable_certificate(plan: LoadPlan, max_harm: float | None) -> tuple[Certificate | None, str]:
    """Return the plan's certificate at the level asked for, and why it must not be used; one of them is empty."""
    if plan.certificate is None:
        return None, plan.damaged if plan.certificate_digest else "the artifact has no certificate"
    if plan.certificate.opinion is not None and plan.variant.spec.engine not in TEXT_ENGINES:
        return None, "the certificate is about somebody's opinion of texts, and this model answers with arrays"
    try:
        return certificates.usable(plan.certificate, plan.subject, max_harm=max_harm, probe=plan.variant.spec.probe), ""
    except (CertificateMismatch, ConfigError) as error:
        return None, error.message


def restored_audit(
    plan: LoadPlan, certificate: Certificate | None, audits: Sequence[Audit], counts: OutcomeCounts
) -> Audit | None:
    """Return the audit of the promise in use, with what is remembered of it; None without a promise."""
    if certificate is None:
        return None
    promise = (plan.artifact_digest, plan.certificate_digest, certificate.max_harm)
    return auditing.restored(audits, promise, counts, certificate.audit_max_harm)
