"""Pictures of the report as inline SVG, coloured by the page's own CSS variables. The only module with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence

from compiler.evaluation import CurvePoint, Evaluation
from penstock.errors import missing_extra

try:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
except ImportError as error:  # the library is behind an extra
    raise missing_extra("matplotlib", "compile", "drawing the report") from error

# matplotlib wants colours, the page wants light and dark: these stand in, and become CSS variables afterwards
_INK, _FAINT, _GRID, _CERTIFY, _TEST, _PROMISE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _GRID: "var(--line)",
    _CERTIFY: "var(--accent)",
    _TEST: "var(--second)",
    _PROMISE: "var(--bad)",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "penstock",  # ids of clip paths are otherwise random: same figures, same bytes
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _FAINT,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def risk_coverage(evaluation: Evaluation) -> str:
    """Harm against coverage: what certified, what the test split measured, the promise, and the certified point."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 3.9))
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        _line(axes, evaluation.curve_test, color=_TEST, label=f"test, {evaluation.splits['test'].rows} examples")
        certify_label = f"certify, {evaluation.splits['certify'].rows} examples"
        _line(axes, evaluation.curve_certify, color=_CERTIFY, label=certify_label)
        _promise(axes, evaluation)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, _top(evaluation))
        axes.set_xlabel("answered on the device, % of requests")
        axes.set_ylabel("harm, points of accuracy")
        axes.legend(frameon=False, loc="upper left")
        figure.tight_layout()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(text.getvalue())


def _line(axes: mpl.axes.Axes, points: Sequence[CurvePoint], *, color: str, label: str) -> None:
    shown = [point for point in points if point.coverage > 0]
    axes.plot(
        [100 * point.coverage for point in shown],
        [100 * point.harm for point in shown],
        drawstyle="steps-post",
        color=color,
        linewidth=2.2,
        label=label,
    )


def _promise(axes: mpl.axes.Axes, evaluation: Evaluation) -> None:
    certificate = evaluation.certificate
    if certificate is None:
        return
    promised = 100 * certificate.max_harm
    axes.axhline(promised, color=_PROMISE, linewidth=1.4, linestyle=(0, (5, 4)))
    axes.annotate(
        f"promised: at most {promised:g}", (1, promised), xytext=(0, 5), textcoords="offset points", color=_PROMISE
    )
    x, y = 100 * certificate.coverage, 100 * certificate.harm_count / certificate.n
    axes.plot([x], [y], "o", color=_CERTIFY, markersize=9)
    axes.plot([x, x], [0, y], color=_CERTIFY, linewidth=1, linestyle=(0, (2, 3)))
    axes.annotate(
        f"certified: {x:.1f}% at {certificate.score} ≥ {certificate.threshold:.3f}",
        (x, y),
        xytext=(-10, 9),
        textcoords="offset points",
        ha="right",
        color=_CERTIFY,
        fontweight="bold",
    )


def _top(evaluation: Evaluation) -> float:
    """The promise in the upper half of the picture, and the curves in it as far as they are of the same size."""
    promised = 100 * evaluation.certificate.max_harm if evaluation.certificate else 0.0
    highest = max((100 * p.harm for p in (*evaluation.curve_certify, *evaluation.curve_test)), default=0.0)
    return max(1.6 * promised, 1.15 * min(highest, 3 * promised if promised else highest), 0.1)


def _themed(svg: str) -> str:
    svg = svg[svg.index("<svg") :]  # the XML head has no place inside a page
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
