"""A certificate issued for one edge variant, from what it and the cloud answered to the same examples.

Owns the order that every promise is made in, for every kind of model and for artifacts old and new: score and
thresholds are chosen on answers that certify nothing, then the certifying answers are looked at once, and the
certificate is bound to the variants, to the evidence of that look and to the digests of both. Pure: who asks the
models, and how, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import columns, evidence, hollow, learn_then_test, score_choice
from compiler.certificate.columns import CertifyData, Floats, Integers
from compiler.certificate.evidence import Sample
from compiler.certificate.score_choice import Choice
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact.certificates import Certificate, Harm, Opinion, Subject
from penstock.errors import CalibrationError
from penstock.policy.decoding import Decoder
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


class Judge(Protocol):
    """Says which answers are right, and which are the same; see ``compiler.measure.quality.Judge``."""

    @property
    def decoder(self) -> Decoder:
        """Return what reads the outputs."""
        ...

    def with_probe(self, output: str) -> Judge:
        """Return the same with an output by which the model itself says how sure it is."""
        ...

    @property
    def is_right_when_equal(self) -> bool:
        """Say whether answers are classes, and right when they are their label."""
        ...

    def same(self, edge: Mapping[str, Array], cloud: Mapping[str, Array]) -> NDArray[np.bool_]:
        """Say which rows [N] two models answered alike, as a device does that audits."""
        ...

    def right(self, outputs: Mapping[str, Array], labels: Array) -> NDArray[np.bool_]:
        """Say which rows [N] are right by their labels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnsweredRows:
    """Answers that are arrays: the outputs of an edge variant and of the cloud. An :class:`Answered`.

    Attributes:
        outputs: of the edge variant, by name.
        cloud: of the cloud variant.
        labels: as the judge takes them [N, ...], or None.
        groups: names [N], or None.
        judge: of the answers.
        clusters: integers [N], equal for examples that belong together, or None.
        is_learned: whether the score ``probe`` was learnt on these rows; its output then holds what heads say that did
            not see the row.
    """

    outputs: Mapping[str, Array]
    cloud: Mapping[str, Array]
    labels: Array | None
    groups: NDArray[np.str_] | None
    judge: Judge
    clusters: Integers | None = None
    is_learned: bool = False

    def choose(self, promise: CertificateSection, *, rows_to_certify: int) -> Choice:
        """Choose among the scores that the outputs can have (``penstock.policy.decoding.SCORES``)."""
        return score_choice.choose(
            self.outputs,
            self._unscored(promise.harm),
            self.judge.decoder,
            promise,
            classes=self.classes(),
            is_learned=self.is_learned,
            rows_to_certify=rows_to_certify,
        )

    def certify_data(self, choice: Choice, *, harm: Harm) -> CertifyData:
        """Score the outputs, and compare the answers."""
        scores = self.judge.decoder.score(self.outputs, name=choice.score, temperature=choice.temperature)
        return self._columns(scores, harm)

    def sure_and_right(self, temperature: float) -> tuple[Floats, NDArray[np.bool_]] | None:
        """Return the largest probability of each row, and whether the answer is right."""
        if self.labels is None or not self.judge.decoder.has_temperature:
            return None
        sure = self.judge.decoder.score(self.outputs, name="max_prob", temperature=temperature)
        return sure, self.judge.right(self.outputs, self.labels)

    def harmful(self, harm: Harm) -> NDArray[np.bool_]:
        """Say which rows [N] are harm if they are kept.

        Raises:
            CalibrationError: harm is counted by labels and there are none.
        """
        return columns.harmful(self._unscored(harm))

    def _unscored(self, harm: Harm) -> CertifyData:
        return self._columns(np.zeros(len(next(iter(self.outputs.values())))), harm)

    def classes(self) -> Integers | None:
        """Return the classes that a temperature is fitted on: labels, or the cloud's answers; None for no classes."""
        decoder = self.judge.decoder
        if not decoder.has_temperature:
            return None
        found = decoder.answers(self.cloud) if self.labels is None else self.labels
        return np.asarray(found if found.ndim == 1 else found.argmax(axis=1), dtype=np.int64)

    def _columns(self, scores: Floats, harm: Harm) -> CertifyData:
        """Return the columns of a certificate: classes that are right when they are their label as they are, answers of
        other kinds as 0 for right and 1 for wrong.

        Raises:
            CalibrationError: harm is counted by labels and there are none.
        """
        score_choice.check_labels(harm, self.labels)
        labels = self.labels if harm == "labels" else None
        scores, models = scores.astype(np.float64), (self.outputs, self.cloud)
        if self.judge.is_right_when_equal:
            edge, cloud = (self.judge.decoder.answers(outputs) for outputs in models)
            return CertifyData(
                scores=scores,
                edge_predictions=edge,
                cloud_predictions=cloud,
                labels=None if labels is None else labels.astype(np.int64),
                groups=self.groups,
                clusters=self.clusters,
            )
        agreed, right = self.judge.same(*models), np.zeros(len(scores), dtype=np.int64)
        if labels is None:
            edge, cloud = right, (~agreed).astype(np.int64)
        else:
            edge, cloud = ((~self.judge.right(outputs, labels)).astype(np.int64) for outputs in models)
        return CertifyData(
            scores=scores,
            edge_predictions=edge,
            cloud_predictions=cloud,
            labels=None if labels is None else right,
            groups=self.groups,
            clusters=self.clusters,
            agreed=None if labels is None else agreed,
        )


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
    sample: Sample,
    *,
    serial: int = 1,
    correct: str = "",
    are_classes: bool = True,
    opinion: Opinion | None = None,
) -> Issued:
    """Look at the certifying examples once, and bind what was found to ``subject``.

    Args:
        data: the certifying examples, of :meth:`Answered.certify_data` with this ``choice``.
        sample: what these examples are.
        serial: one more than the last certificate's of this edge variant.
        correct: by what an answer was right, "" where it was equal to its label.
        are_classes: whether answers are classes, which can be guessed.
        opinion: whose grades ``data`` have; None without any.

    Raises:
        CalibrationError: the promise is refused, with the samples needed; or it would say nothing, because the cloud is
            not shown to be better than guessing.
    """
    found = learn_then_test.promise(data, promise, thresholds=choice.thresholds)
    caveat = hollow.caveat(data, are_classes=are_classes)
    if promise.check_cloud and caveat is not None and caveat.kind in hollow.REFUSED:
        raise CalibrationError(hollow.reason(caveat, data, are_classes=are_classes))
    document = evidence.encode(data, found.thresholds)
    certificate = evidence.bind(
        found,
        subject,
        sample,
        score=choice.score,
        temperature=choice.temperature,
        evidence=document,
        serial=serial,
        correct=correct,
        caveat=caveat,
        opinion=opinion,
    )
    return Issued(certificate=certificate, evidence=document)
