"""The report that a person reads: one self-contained HTML page about one artifact. Shows figures; computes none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compiler.artifact import plots
from compiler.artifact.evaluation import NOISY_CLOCK, CurvePoint, Evaluation, TargetEvaluation
from penstock import wording
from penstock.artifact.certificates import Certificate, by_how_much
from penstock.errors import missing_extra

try:
    import jinja2
    from markupsafe import Markup
except ImportError as error:  # the library is behind an extra
    raise missing_extra("jinja2", "compile", "writing the report") from error

_TEMPLATES = Path(__file__).parent / "templates"
_FILTERS = (
    "percent", "count", "interval", "counted", "points", "allowed", "confidence", "change", "times", "size", "short",
)  # fmt: skip
_USES: Mapping[str, str] = {
    "ranges": "integer ranges",
    "tune": "the gate, the temperature and the choice of the score",
    "certify": "the certificate; looked at once",
    "test": "figures that decide nothing",
}


def render(evaluation: Evaluation) -> str:
    """Write the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(wording, name) for name in _FILTERS} | {"ms": wording.milliseconds}
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        targets=[(target, _pictures(evaluation, target), refusals(target)) for target in evaluation.targets],
        uses=_USES,
        noisy=NOISY_CLOCK,
        shown_operators=plots.MOST_OPERATORS,
        by_how_much=by_how_much,
    )


def refusals(target: TargetEvaluation) -> list[tuple[str, str]]:
    """Say what was not promised of a variant, and why: (what, why)."""
    cascade = target.cascade
    if cascade is None:
        return []
    found = []
    if cascade.refusal:
        found.append(("The certificate", f"{cascade.refusal} Agents escalate every answer of this variant."))
    certificate = cascade.certificate
    if certificate is None:
        return found
    loosest = _next_threshold(target)
    if loosest is not None:
        found.append(
            (
                f"Any threshold below {certificate.threshold:.4f}",
                f"At {loosest.threshold:.4f}, {_harmful(loosest.harm, certificate)}: too many to rule out, at "
                f"{wording.confidence(certificate.delta)} confidence, a true harm above "
                f"{wording.allowed(certificate.max_harm)} points. It would have kept "
                f"{wording.percent(loosest.coverage)}.",
            )
        )
    found += [
        (f"At most {wording.allowed(level.max_harm)} points of harm", level.reason) for level in certificate.refused
    ]
    return found


def _harmful(share: float, certificate: Certificate) -> str:
    if certificate.opinion is not None:
        points = wording.points(share)
        return f"{certificate.n} certifying {certificate.unit_name} were harmful by {points} points on average"
    if certificate.over == "clusters":
        average = wording.percent(share)
        return f"on average {average} of the examples of each of {certificate.n} certifying clusters were harmful"
    return f"{round(share * certificate.n)} of {certificate.n} certifying {certificate.unit_name} were harmful"


def _pictures(evaluation: Evaluation, target: TargetEvaluation) -> dict[str, Markup]:
    """Mark our own drawings as safe: they are not anyone's text."""
    drawn = {
        "pareto": plots.pareto(target),
        "sensitivity": plots.sensitivity(target),
        "risk": "",
        "reliability": "",
        "scores": "",
    }
    if target.cascade is not None:
        rows = {use: evaluation.splits[use].rows for use in ("certify", "test")}
        drawn["risk"] = plots.risk_coverage(target.cascade, certify_rows=rows["certify"], test_rows=rows["test"])
        drawn["reliability"] = plots.reliability(target.cascade)
        drawn["scores"] = plots.scores(target.cascade)
    return {name: Markup(picture) for name, picture in drawn.items()}


def _next_threshold(target: TargetEvaluation) -> CurvePoint | None:
    """Return the strictest threshold that was looked at and not certified, if it would have kept anything."""
    if target.cascade is None or target.cascade.certificate is None:
        return None
    threshold = target.cascade.certificate.threshold
    below = [point for point in target.cascade.curve_certify if point.threshold < threshold]
    return below[0] if below else None
