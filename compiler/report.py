"""The report that a person reads: one self-contained HTML page about one artifact. Shows figures; computes none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compiler import plots
from compiler.evaluate import Share
from compiler.evaluation import CurvePoint, Evaluation
from penstock.errors import missing_extra

try:
    import jinja2
    from markupsafe import Markup
except ImportError as error:  # the library is behind an extra
    raise missing_extra("jinja2", "compile", "writing the report") from error

_TEMPLATES = Path(__file__).parent / "templates"
_USES: Mapping[str, str] = {
    "ranges": "integer ranges of the quantized student",
    "temperature": "temperature of the confidence score",
    "certify": "the certificate; looked at once",
    "test": "every figure above, and the accuracy gate",
}


def render(evaluation: Evaluation) -> str:
    """The page."""
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
        curve=Markup(plots.risk_coverage(evaluation)),  # our own drawing, not anyone's text
        refused=refusals(evaluation),
        uses=_USES,
    )


def refusals(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What was not done, and why: (what, why)."""
    found = []
    if evaluation.refusal:
        found.append(("The certificate", f"{evaluation.refusal} Agents escalate every answer of this artifact."))
    loosest = _next_threshold(evaluation)
    certificate = evaluation.certificate
    if certificate is not None and loosest is not None:
        found.append(
            (
                f"Any threshold below {certificate.threshold:.4f}",
                f"At {loosest.threshold:.4f}, {round(loosest.harm * certificate.n)} of {certificate.n} certifying "
                f"examples were harmful: too many to rule out, at {1 - certificate.delta:.0%} confidence, a true harm "
                f"above {100 * certificate.max_harm:g} points. It would have kept {_percent(loosest.coverage)}.",
            )
        )
    if evaluation.quantization is not None and evaluation.quantization.float_nodes:
        left = ", ".join(f"{count} {kind}" for kind, count in evaluation.quantization.float_nodes.items())
        found.append(("Integers for every product", f"{left} stay in float: the runtime has no integer kernel."))
    return found


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1000:
        return f"{count} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def milliseconds(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _next_threshold(evaluation: Evaluation) -> CurvePoint | None:
    """The strictest threshold that was looked at and not certified, if it would have kept anything."""
    if evaluation.certificate is None:
        return None
    below = [point for point in evaluation.curve_certify if point.threshold < evaluation.certificate.threshold]
    return below[0] if below else None


def _percent(value: float | Share) -> str:
    number = value.value if isinstance(value, Share) else value
    return f"{100 * number:.1f}%"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
