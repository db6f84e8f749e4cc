"""The certificate as data: what was promised, for which digests, with what evidence.

Decides only whether a certificate fits the variants at hand. How one is earned is ``compiler.certify``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.errors import ArtifactError, CertificateMismatch

MEDIA_TYPE = "application/vnd.penstock.certificate.v1+json"

Harm = Literal["labels", "disagreement"]
"""What counts as harm for a kept answer: edge wrong and cloud right (labels), or edge != cloud (disagreement)."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With probability at least ``1 - delta`` over the certifying sample, keeping every answer whose score is at
    least ``threshold`` costs at most ``max_harm`` accuracy against always asking the cloud.

    Attributes:
        edge_digest, cloud_digest: variant manifest digests. ``preprocessing_digest``: of the canonical JSON of the
            preprocessing that both variants expect.
        score: name of the confidence score (``penstock.confidence.SCORES``); ``temperature`` divides the logits first.
        n: certifying examples; ``harm_count`` of them harmful and ``kept_count`` kept at the threshold.
        coverage: expected share answered on the device; ``coverage_low``/``coverage_high`` its 1 - delta interval.
        audit_max_harm: bound on P(kept and edge != cloud), the rate an audit without labels can watch in service.
            Equals ``max_harm`` when harm is disagreement; with labels it is the larger of ``max_harm`` and a
            Clopper-Pearson upper bound, Bonferroni-corrected over the thresholds looked at.
        method: how the threshold was found.
    """

    schema: Literal[1] = 1
    model: str
    edge_digest: str
    cloud_digest: str
    preprocessing_digest: str
    harm: Harm
    score: str
    temperature: float
    threshold: float
    max_harm: float
    delta: float
    n: int
    harm_count: int
    kept_count: int
    coverage: float
    coverage_low: float
    coverage_high: float
    audit_max_harm: float
    data_digest: str
    method: str = "fixed-sequence testing, exact binomial p-values (Learn then Test, arXiv 2110.01052)"

    def promise(self) -> str:
        """The promise as one English sentence."""
        return (
            f"with {1 - self.delta:.0%} confidence, answering locally at {self.score} >= {self.threshold:.4f} "
            f"costs at most {100 * self.max_harm:g} points of accuracy against always asking the cloud"
        )


def encode(certificate: Certificate) -> bytes:
    """Canonical JSON; same certificate, same bytes."""
    return msgspec.json.encode(certificate, order="sorted")


def decode(data: bytes) -> Certificate:
    """
    Raises:
        ArtifactError: not a certificate, or one of another schema.
    """
    try:
        return msgspec.json.decode(data, type=Certificate)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"certificate: {error}") from error


def check(certificate: Certificate, *, edge_digest: str, cloud_digest: str, preprocessing_digest: str) -> None:
    """Invariant 5: a threshold is only used with the exact variants it was certified for.

    Raises:
        CertificateMismatch: names every digest that differs.
    """
    pairs = {
        "edge variant": (certificate.edge_digest, edge_digest),
        "cloud variant": (certificate.cloud_digest, cloud_digest),
        "preprocessing": (certificate.preprocessing_digest, preprocessing_digest),
    }
    wrong = [f"{what}: certified {want}, have {have}" for what, (want, have) in pairs.items() if want != have]
    if wrong:
        raise CertificateMismatch(
            f"the certificate of {certificate.model!r} was issued for other digests ({'; '.join(wrong)}); "
            "it is not used and every answer is escalated. Certify this pair with 'penstock compile'."
        )
