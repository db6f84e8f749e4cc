"""A certificate issued for one edge variant, from what it and the cloud answered to the same examples.

Owns the order that every promise is made in, for every kind of model and for artifacts old and new: score and
thresholds are chosen on answers that certify nothing, then the certifying answers are looked at once, and the
certificate is bound to the variants, to the evidence of that look and to the digests of both. Pure: who asks the
models, and how, is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import evidence, learn_then_test, score_choice
from compiler.certificate.columns import CertifyData, Floats, Integers
from compiler.certificate.score_choice import Choice
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact.certificates import Certificate, Harm, Subject
from penstock.policy import confidence
from penstock.policy.confidence import Kind
from penstock.wire.tensors import Array


class Answered(Protocol):
    """What an edge variant and the cloud answered to the examples of one split, whatever answers are made of."""

    def choose(self, promise: CertificateSection, *, rows_to_certify: int) -> Choice:
        """Choose score, temperature and thresholds on these answers, which must certify nothing.

        Raises:
            CalibrationError: nothing can be chosen on them.
        """
        ...

    def certify_data(self, choice: Choice, *, harm: Harm) -> CertifyData:
        """Return the columns that a promise is certified on, scored as ``choice`` says.

        Raises:
            CalibrationError: harm is counted by labels and there are none.
        """
        ...

    def sure_and_right(self, temperature: float) -> tuple[Floats, NDArray[np.bool_]] | None:
        """Return how sure the edge was of each answer, as a probability, and whether it was right.

        None where answers have no such probability, or nobody knows what is right.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnsweredRows:
    """Answers that are arrays: the scored outputs [N, C] of a classifier and of the cloud. An :class:`Answered`.

    Attributes:
        outputs: of the edge variant.
        cloud: of the cloud variant.
        labels: classes [N], or None.
        groups: names [N], or None.
        kind: whether the outputs are logits or probabilities.
    """

    outputs: Array
    cloud: Array
    labels: Integers | None
    groups: NDArray[np.str_] | None
    kind: Kind

    def choose(self, promise: CertificateSection, *, rows_to_certify: int) -> Choice:
        """Choose among the scores of a classifier (``penstock.policy.confidence.SCORES``)."""
        return score_choice.choose(
            self.outputs,
            confidence.predicted(self.outputs),
            confidence.predicted(self.cloud),
            self.labels,
            self.kind,
            promise,
            groups=self.groups,
            rows_to_certify=rows_to_certify,
        )

    def certify_data(self, choice: Choice, *, harm: Harm) -> CertifyData:
        """Score the outputs, and compare classes."""
        scores = confidence.score(self.outputs, kind=self.kind, name=choice.score, temperature=choice.temperature)
        return CertifyData(
            scores=scores.astype(np.float64),
            edge_predictions=confidence.predicted(self.outputs),
            cloud_predictions=confidence.predicted(self.cloud),
            labels=self.labels if harm == "labels" else None,
            groups=self.groups,
        )

    def sure_and_right(self, temperature: float) -> tuple[Floats, NDArray[np.bool_]] | None:
        """Return the largest probability of each row, and whether that class is the label's."""
        if self.labels is None:
            return None
        sure = confidence.score(self.outputs, kind=self.kind, name="max_prob", temperature=temperature)
        return sure, np.asarray(confidence.predicted(self.outputs) == self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, and the evidence document that it names."""

    certificate: Certificate
    evidence: bytes


def issue(
    data: CertifyData,
    promise: CertificateSection,
    choice: Choice,
    subject: Subject,
    *,
    data_digest: str,
    group_by: str = "",
    serial: int = 1,
) -> Issued:
    """Look at the certifying examples once, and bind what was found to ``subject``.

    Args:
        data: the certifying examples, of :meth:`Answered.certify_data` with this ``choice``.
        data_digest: of the certifying split.
        group_by: what the groups are called, "" without groups.
        serial: one more than the last certificate's of this edge variant.

    Raises:
        CalibrationError: the promise is refused, with the samples needed.
    """
    found = learn_then_test.promise(data, promise, thresholds=choice.thresholds)
    document = evidence.encode(data, found.thresholds)
    certificate = evidence.bind(
        found,
        subject,
        score=choice.score,
        temperature=choice.temperature,
        data_digest=data_digest,
        evidence=document,
        group_by=group_by,
        serial=serial,
    )
    return Issued(certificate=certificate, evidence=document)
