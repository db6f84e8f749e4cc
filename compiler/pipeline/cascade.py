"""The cascade of a compiled variant: tuned on one split, certified by one look at another, described on a third."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compiler.artifact.evaluation import CascadeEvaluation, CurvePoint
from compiler.certificate import learn_then_test
from compiler.certificate.columns import CertifyData
from compiler.certificate.evidence import Sample
from compiler.certificate.issue import Answered, Issued, issue
from compiler.certificate.score_choice import Choice
from compiler.measure import cascade_figures
from compiler.pipeline.cached_steps import CachedSteps
from compiler.pipeline.candidates import Probed, score_figures
from compiler.pipeline.family import Use
from compiler.progress import Doing
from compiler.recipe.certificate_section import CertificateSection
from penstock import wording
from penstock.artifact.certificates import Certificate, Opinion, Subject, by_how_much
from penstock.errors import CalibrationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """What was found of a variant's cascade.

    Attributes:
        issued: the certificate with its evidence; None where the promise was refused.
    """

    evaluation: CascadeEvaluation
    issued: Issued | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is to be certified of a variant.

    Attributes:
        what: the variant, for messages.
        promise: its share of the recipe's promise.
        subject: what the certificate binds.
        sample: what the certifying examples are.
        units: how many of them are tested: examples, or clusters.
        is_required: whether a refusal ends the compilation.
        correct: by what an answer is right, "" where it is equal to its label.
        opinion: whose grades answers have; None where they are right or wrong.
        probed: what became of a head for its confidence; None where none was tried.
    """

    what: str
    promise: CertificateSection
    subject: Subject
    sample: Sample
    units: int
    is_required: bool
    correct: str = ""
    opinion: Opinion | None = None
    probed: Probed | None = None


def build(steps: CachedSteps, claim: Claim, ask: Callable[[Use, Doing], Answered]) -> Cascade:
    """Tune, certify and describe one variant's cascade.

    Everything that is chosen, and the test split, come before the certifying split: whatever fails there fails before
    the one look.

    Args:
        ask: asks the variant and the cloud the examples of one use.

    Raises:
        CalibrationError: the promise is refused, with the samples needed (unless it is not required).
    """
    harm = claim.promise.harm
    with steps(f"{claim.what} tune") as doing:
        choice = ask("tune", doing).choose(claim.promise, rows_to_certify=claim.units)
        tested = ask("test", doing)
        temperature = f", temperature {choice.temperature:.3f}" if choice.temperature != 1 else ""
        doing.note(f"{choice.score}{temperature}; {choice.reason}")
    with steps(f"{claim.what} certify") as doing:
        certifying = ask("certify", doing).certify_data(choice, harm=harm)
        issued, refusal = _issued(certifying, choice, claim)
        certificate = None if issued is None else issued.certificate
        doing.note(words(certificate, refusal))
    on_test, known = tested.certify_data(choice, harm=harm), tested.sure_and_right(choice.temperature)
    evaluation = CascadeEvaluation(
        harm=harm,
        score=choice.score,
        score_coverage=dict(choice.coverage),
        temperature=choice.temperature,
        certificate=certificate,
        refusal=refusal,
        figures=None if certificate is None else cascade_figures.at_threshold(on_test, certificate.threshold),
        curve_certify=_curve(certifying, choice),
        curve_test=_curve(on_test, choice),
        reliability=() if known is None else cascade_figures.reliability(*known),
        scores=(() if claim.probed is None else claim.probed.scores) or score_figures(choice),
        probe=None if claim.probed is None else claim.probed.figures,
    )
    return Cascade(evaluation=evaluation, issued=issued)


def words(certificate: Certificate | None, refusal: str) -> str:
    """Say in a line what came of it."""
    if certificate is None:
        return f"REFUSED: {refusal}"
    return (
        f"{certificate.score} >= {certificate.threshold:.4f} keeps {wording.percent(certificate.coverage)}; "
        f"{certificate.harm_count} of {certificate.n} {certificate.unit_name} harmful{by_how_much(certificate)}"
    )


def _issued(data: CertifyData, choice: Choice, claim: Claim) -> tuple[Issued | None, str]:
    """Take the one look at the certifying split; return the certificate, or why there is none."""
    try:
        correct = claim.correct if claim.promise.harm == "labels" else ""
        issued = issue(
            data,
            claim.promise,
            choice,
            claim.subject,
            claim.sample,
            correct=correct,
            are_classes=not claim.correct,
            opinion=claim.opinion,
        )
    except CalibrationError as error:
        if claim.is_required:
            raise
        return None, error.message.rstrip(".") + "."
    return issued, ""


def _curve(data: CertifyData, choice: Choice) -> tuple[CurvePoint, ...]:
    points = learn_then_test.risk_coverage(data, choice.thresholds)
    return tuple(CurvePoint(threshold=p.threshold, coverage=p.coverage, harm=p.harm) for p in points)
