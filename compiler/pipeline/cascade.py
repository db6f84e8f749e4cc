"""A variant's cascade: tuned on a split of its own, certified by one look, described on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact.evaluation import CascadeEvaluation, CurvePoint, ReliabilityBin
from compiler.certificate import certify, evidence, score_choice
from compiler.certificate.certify import CertifyData, Promised
from compiler.certificate.score_choice import Choice
from compiler.data import Split
from compiler.measure import side_by_side
from compiler.pipeline.cached_steps import Workshop
from compiler.pipeline.inputs import Ladder
from compiler.pipeline.variants import Shipped
from compiler.progress import Doing, Steps
from compiler.recipe import certificate_section
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.recipes import CLOUD
from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate, Subject
from penstock.artifact.layout import VariantDraft, variant_digest
from penstock.errors import CalibrationError
from penstock.policy import confidence
from penstock.wire.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """A variant's cascade. ``evidence`` is what the certificate can be recomputed from; b"" without one."""

    evaluation: CascadeEvaluation
    certificate: Certificate | None
    evidence: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a variant and the cloud say to one split."""

    split: Split
    outputs: Array
    data: CertifyData


def build(
    shop: Workshop,
    steps: Steps,
    ladder: Ladder,
    shipped: Shipped,
    cloud: VariantDraft,
    directory: Path,
    *,
    require_certificate: bool,
) -> Cascade:
    """Tune, certify and describe one variant's cascade.

    Args:
        directory: where the artifact is being packed.

    Raises:
        CalibrationError: the promise is refused, with the samples needed (unless it is not required).
    """
    what, section = shipped.setting.what, _section(ladder)
    with steps(f"{what} tune") as doing:
        asking = _Asking(shop, ladder, shipped, doing)
        choice = asking.choice(section)
        tested = asking.ask(ladder.data.test, choice)
        doing.note(f"{choice.score}, temperature {choice.temperature:.3f}; {choice.reason}")
    with steps(f"{what} certify") as doing:
        certifying = _Asking(shop, ladder, shipped, doing).ask(ladder.data.certify, choice)
        parties = Parties(
            model=ladder.recipe.model.name,
            edge=shipped.draft,
            cloud=cloud,
            preprocessing=ladder.preprocessing,
            data_digest=ladder.data.certify.digest,
            group_by=ladder.recipe.data.group_by,
        )
        reliable = side_by_side.reliability(
            tested.outputs,
            ladder.data.test.labels,
            kind=ladder.recipe.model.output_kind,
            temperature=choice.temperature,
        )
        found = of_data(
            certifying.data,
            tested.data,
            section,
            choice,
            parties,
            directory,
            reliability=reliable,
            require_certificate=require_certificate,
        )
        doing.note(words(found))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Whom a certificate is about: two variants, as they will be packed, what they expect, and the data."""

    model: str
    edge: VariantDraft
    cloud: VariantDraft
    preprocessing: Mapping[str, Any]
    data_digest: str
    group_by: str = ""


def of_data(
    certifying: CertifyData,
    tested: CertifyData,
    section: CertificateSection,
    choice: Choice,
    parties: Parties,
    directory: Path,
    *,
    require_certificate: bool,
    reliability: tuple[ReliabilityBin, ...] = (),
) -> Cascade:
    """The one look at the certifying examples, the certificate of what was found, and the figures of both splits.

    Args:
        directory: where the artifact is being packed.

    Raises:
        CalibrationError: refused (unless no certificate is required).
    """
    promised, refusal = _promised(certifying, section, choice, require_certificate)
    certificate, document = None, b""
    if promised is not None:
        document = evidence.encode(certifying, promised.thresholds)
        certificate = evidence.bind(
            promised,
            Subject(
                model=parties.model,
                edge_digest=variant_digest(parties.edge, directory),
                cloud_digest=variant_digest(parties.cloud, directory),
                preprocessing_digest=manifests.preprocessing_digest(parties.preprocessing),
            ),
            score=choice.score,
            temperature=choice.temperature,
            data_digest=parties.data_digest,
            evidence=document,
            group_by=parties.group_by,
        )
    evaluation = CascadeEvaluation(
        harm=section.harm,
        score=choice.score,
        score_coverage=dict(choice.coverage),
        temperature=choice.temperature,
        certificate=certificate,
        refusal=refusal,
        figures=None if certificate is None else side_by_side.cascade(tested, certificate.threshold),
        curve_certify=_curve(certifying, choice),
        curve_test=_curve(tested, choice),
        reliability=reliability,
    )
    return Cascade(evaluation=evaluation, certificate=certificate, evidence=document)


def words(found: Cascade) -> str:
    """What came of it, in a line."""
    certificate = found.certificate
    if certificate is None:
        return f"REFUSED: {found.evaluation.refusal}"
    return (
        f"{certificate.score} >= {certificate.threshold:.4f} keeps {certificate.coverage:.1%}; "
        f"{certificate.harm_count} of {certificate.n} harmful"
    )


class _Asking:
    """Asks one variant and the cloud."""

    def __init__(self, shop: Workshop, ladder: Ladder, shipped: Shipped, doing: Doing) -> None:
        self._shop = shop
        self._ladder = ladder
        self._shipped = shipped
        self._doing = doing

    def choice(self, section: CertificateSection) -> Choice:
        """Score, temperature and thresholds, from the tuning split."""
        split, model = self._ladder.data.tune, self._ladder.recipe.model
        edge, cloud = self._outputs(split)
        return score_choice.choose(
            edge,
            confidence.predicted(edge),
            confidence.predicted(cloud),
            split.labels,
            model.output_kind,
            section,
            groups=split.groups,
            rows_to_certify=self._ladder.data.certify.rows,
        )

    def ask(self, split: Split, choice: Choice) -> _Asked:
        """Scores and classes on another split."""
        edge, cloud = self._outputs(split)
        scores = confidence.score(
            edge, kind=self._ladder.recipe.model.output_kind, name=choice.score, temperature=choice.temperature
        )
        data = CertifyData(
            scores=scores,
            edge_predictions=confidence.predicted(edge),
            cloud_predictions=confidence.predicted(cloud),
            labels=split.labels if self._ladder.recipe.certificate.harm == "labels" else None,
            groups=split.groups,
        )
        return _Asked(split=split, outputs=edge, data=data)

    def _outputs(self, split: Split) -> tuple[Array, Array]:
        model, output = self._ladder.recipe.model, self._ladder.output
        return tuple(  # type: ignore[return-value]
            self._shop.answers(source, split, self._doing, output=output, max_batch=model.max_batch, what=what)
            for source, what in ((self._shipped.graph, self._shipped.setting.what), (self._ladder.cloud, CLOUD))
        )


def _section(ladder: Ladder) -> CertificateSection:
    """The promise of one rung."""
    return certificate_section.for_rung(ladder.recipe.certificate, len(ladder.recipe.rungs))


def _promised(
    data: CertifyData, section: CertificateSection, choice: Choice, require_certificate: bool
) -> tuple[Promised | None, str]:
    """The one look at the certifying split."""
    try:
        return certify.promise(data, section, thresholds=choice.thresholds), ""
    except CalibrationError as error:
        if require_certificate:
            raise
        return None, error.message.rstrip(".") + "."


def _curve(data: CertifyData, choice: Choice) -> tuple[CurvePoint, ...]:
    points = certify.risk_coverage(data, choice.thresholds)
    return tuple(CurvePoint(threshold=p.threshold, coverage=p.coverage, harm=p.harm) for p in points)
