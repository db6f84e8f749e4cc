"""The report that a person reads: one self-contained HTML page about one artifact. Shows figures; computes none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compiler.artifact import plots
from compiler.artifact.evaluation import CurvePoint, Evaluation, Share, TargetEvaluation
from penstock.artifact.certificates import Certificate
from penstock.errors import missing_extra

try:
    import jinja2
    from markupsafe import Markup
except ImportError as error:  # the library is behind an extra
    raise missing_extra("jinja2", "compile", "writing the report") from error

_TEMPLATES = Path(__file__).parent / "templates"
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
    environment.filters |= {"percent": _percent, "size": size, "ms": milliseconds, "short": _short}
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        targets=[(target, _pictures(evaluation, target), refusals(target)) for target in evaluation.targets],
        uses=_USES,
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
                f"At {loosest.threshold:.4f}, {_harmful(loosest.harm, certificate)} harmful: too many to rule out, at "
                f"{1 - certificate.delta:.0%} confidence, a true harm above {100 * certificate.max_harm:g} points. It "
                f"would have kept {_percent(loosest.coverage)}.",
            )
        )
    found += [(f"At most {100 * level.max_harm:g} points of harm", level.reason) for level in certificate.refused]
    return found


def _harmful(share: float, certificate: Certificate) -> str:
    if certificate.over == "clusters":
        return f"on average {_percent(share)} of the examples of each of {certificate.n} certifying clusters were"
    return f"{round(share * certificate.n)} of {certificate.n} certifying {certificate.units} were"


def size(count: int) -> str:
    """Say bytes in words for people."""
    if count < 1000:
        return f"{count} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def milliseconds(value: float) -> str:
    """Format three significant digits, never an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


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


def _percent(value: float | Share) -> str:
    number = value.value if isinstance(value, Share) else value
    return f"{100 * number:.1f}%"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
