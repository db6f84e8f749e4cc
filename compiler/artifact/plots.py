"""Pictures of the report as inline SVG, coloured by the page's own CSS variables. The only module with matplotlib.

They are drawn about as wide as the screen of a telephone, so that their type is as large as the page's there as well.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from compiler.artifact.evaluation import CandidateFigures, CascadeEvaluation, CurvePoint, TargetEvaluation
from penstock.errors import missing_extra
from penstock.policy.confidence import PROBE
from penstock.process.directories import cache_directory

if TYPE_CHECKING:
    import matplotlib as mpl

# looked for here, so that its absence is said before anything is compiled; loaded by the first picture: that takes half
# a second, for which a recipe that is refused, or a compilation that is only copied, need not wait
# its font cache: in a home that cannot be written it would warn, and look for all fonts at every start
os.environ.setdefault("MPLCONFIGDIR", str(cache_directory(os.environ) / "matplotlib"))
if importlib.util.find_spec("matplotlib") is None:  # the library is behind an extra
    raise missing_extra("matplotlib", "compile", "drawing the report")

# matplotlib wants colours, the page wants light and dark: these stand in, and become CSS variables afterwards
_INK, _FAINT, _GRID, _FIRST, _SECOND, _BAD, _GOOD = (f"#{index:02x}{index:02x}{index:02x}" for index in range(1, 8))
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _GRID: "var(--line)",
    _FIRST: "var(--accent)",
    _SECOND: "var(--second)",
    _BAD: "var(--bad)",
    _GOOD: "var(--good)",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "penstock",  # ids of clip paths are otherwise random: same figures, same bytes
    "font.family": "sans-serif",
    "font.size": 9.5,
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
_WIDTH_INCHES = 4.4
_PLOT_POINTS, _CHARACTER_POINTS, _LINE_POINTS = (255.0, 165.0), 5.8, 12.0
"""About how large the plot and its type are; a browser's own font may be a little wider or narrower."""
_LABEL_OFFSETS = (6, -14, 21, -29)  # of a label above its point

_BIN = 10.0  # percent that one bin of confidence is wide

MOST_OPERATORS = 16
"""Bars of the sensitivity picture; what is less sensitive than these never matters."""


def pareto(target: TargetEvaluation) -> str:
    """Draw quality against latency (size, where nothing was timed), one point a candidate; "" for fewer than two."""
    shown = [line for line in target.candidates if line.quality is not None]
    if len(shown) < 2:
        return ""
    timed = all(line.speed is not None for line in shown)

    def cost(line: CandidateFigures) -> float:
        return line.speed.p50_ms["1"] if timed and line.speed is not None else line.size_bytes / 1e6

    def draw(axes: mpl.axes.Axes) -> None:
        for line in shown:
            assert line.quality is not None
            x, y = cost(line), 100 * line.quality.value
            colour = _FIRST if line.ships else _FAINT
            spread = [[y - 100 * line.quality.low], [100 * line.quality.high - y]]
            axes.errorbar(
                [x], [y], yerr=spread, fmt="o", color=colour, markersize=10 if line.ships else 6, elinewidth=1
            )
        parent = next((line for line in shown if line.name == target.parent), None)
        if parent is not None and parent.quality is not None:
            floor = 100 * (parent.quality.value - target.max_drop)
            axes.axhline(floor, color=_BAD, linewidth=1.2, linestyle=(0, (5, 4)))
            axes.annotate(
                "quality budget", (0.01, floor), xycoords=("axes fraction", "data"), xytext=(0, -11),
                textcoords="offset points", color=_BAD,
            )  # fmt: skip
        axes.set_xlim(0, 1.5 * max(cost(line) for line in shown))
        axes.set_ylim(axes.get_ylim())  # labels are placed by it
        for line, point, offset, to_right in _labelled(
            [(line, (cost(line), 100 * _value(line))) for line in shown], axes
        ):
            axes.annotate(
                _short(line.name),
                point,
                xytext=(9 if to_right else -9, offset),
                ha="left" if to_right else "right",
                textcoords="offset points",
                color=_FIRST if line.ships else _FAINT,
                fontweight="bold" if line.ships else "normal",
            )
        axes.set_xlabel("p50 latency of one row, ms" if timed else "size, MB (not timed on this machine)")
        axes.set_ylabel(f"{target.metric}, %")

    return _picture(draw, height=3.1)


def risk_coverage(cascade: CascadeEvaluation, *, certify_rows: int, test_rows: int) -> str:
    """Draw harm against coverage: what certified, what the test split measured, the promise, and
    the certified point."""

    def draw(axes: mpl.axes.Axes) -> None:
        _steps(axes, cascade.curve_test, color=_SECOND, label=f"test, {test_rows} examples")
        _steps(axes, cascade.curve_certify, color=_FIRST, label=f"certify, {certify_rows} examples")
        _promise(axes, cascade)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, _top(cascade))
        axes.set_xlabel("answered on the device, % of requests")
        axes.set_ylabel("harm, points")
        axes.legend(frameon=False, loc="upper left")

    return _picture(draw, height=3.3)


def sensitivity(target: TargetEvaluation) -> str:
    """Draw signal to noise of the most sensitive operators, worst on top, those back in float marked; "" for none."""
    shown = target.sensitivity[:MOST_OPERATORS]
    if not shown:
        return ""
    kept = {name for line in target.candidates if line.ships for name in line.kept_float}

    def draw(axes: mpl.axes.Axes) -> None:
        least = min(0.0, *(line.sqnr_db for line in shown))
        for place, line in zip(range(len(shown), 0, -1), shown, strict=True):
            axes.barh(place - 0.2, line.sqnr_db, color=_BAD if line.node in kept else _FIRST, height=0.32)
            axes.annotate(f"{_short(line.node)}  {line.operator}", (least, place + 0.08), va="bottom", color=_INK)
        axes.set_yticks([])
        axes.set_ylim(0.4, len(shown) + 0.7)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("signal to quantization noise of its output, dB")

    return _picture(draw, height=0.7 + 0.36 * len(shown))


def reliability(cascade: CascadeEvaluation) -> str:
    """Draw accuracy against confidence in ten bins, with 95% intervals and the rows in each, after the temperature; ""
    without labels.
    """
    if not cascade.reliability:
        return ""

    def draw(axes: mpl.axes.Axes) -> None:
        axes.plot([0, 100], [0, 100], color=_FAINT, linewidth=1, linestyle=(0, (2, 3)))
        x = [100 * part.confidence for part in cascade.reliability]
        y = [100 * part.accuracy for part in cascade.reliability]
        below = [100 * (part.accuracy - part.low) for part in cascade.reliability]
        above = [100 * (part.high - part.accuracy) for part in cascade.reliability]
        axes.errorbar(x, y, yerr=[below, above], fmt="o-", color=_FIRST, markersize=5, linewidth=1.2, elinewidth=1)
        for part in cascade.reliability:
            middle = _BIN * (min(int(100 * part.confidence / _BIN), int(100 / _BIN) - 1) + 0.5)
            axes.annotate(f"{part.rows}", (middle, -9), ha="center", va="center", color=_FAINT, fontsize=8)
        axes.set_xlim(0, 102)
        axes.set_ylim(-16, 104)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel("how sure the device is, %")
        axes.set_ylabel("how often it is right, %")

    return _picture(draw, height=3.4)


def scores(cascade: CascadeEvaluation) -> str:
    """Draw harm against coverage of every score on the tuning split; "" where there is no harm to rank."""
    shown = [one for one in cascade.scores if one.auroc is not None]
    if len(shown) < 2:
        return ""

    def draw(axes: mpl.axes.Axes) -> None:
        others = iter(((0, (1, 1)), (0, (5, 2)), (0, (3, 1, 1, 1)), (0, (8, 3)), (0, (1, 3))))
        for one in shown:
            is_used = one.name == cascade.score
            axes.plot(
                [100 * coverage for coverage, _ in one.curve],
                [100 * harm for _, harm in one.curve],
                color=_FIRST if is_used else _SECOND if one.name == PROBE else _FAINT,
                linestyle="-" if is_used or one.name == PROBE else next(others),
                linewidth=2.2 if is_used else 1.4,
                label=one.name,
            )
        if cascade.certificate is not None:
            axes.axhline(100 * cascade.certificate.max_harm, color=_BAD, linewidth=1.4, linestyle=(0, (5, 4)))
        axes.set_xlim(0, 102)
        axes.set_ylim(0, None)
        axes.set_xlabel("kept on the device, % of tuning examples")
        axes.set_ylabel("kept and harmful, %")
        axes.legend(frameon=False, loc="upper left")

    return _picture(draw, height=3.4)


def _picture(draw: Callable[[mpl.axes.Axes], None], *, height: float) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, height))
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        figure.tight_layout(pad=0.5)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(text.getvalue())


def _labelled(
    points: Sequence[tuple[CandidateFigures, tuple[float, float]]], axes: mpl.axes.Axes
) -> list[tuple[CandidateFigures, tuple[float, float], int, bool]]:
    """Choose the points that get a label, how far above it stands in points of type, and whether to the right of its
    point.

    The one that ships comes first.

    A label that would lie on another one everywhere near its point is left out: the table names all candidates.
    """
    found: list[tuple[CandidateFigures, tuple[float, float], int, bool]] = []
    taken: list[tuple[float, float, float]] = []  # left, right, bottom
    (low, high), most = axes.get_ylim(), axes.get_xlim()[1]
    for line, (x, y) in sorted(points, key=lambda item: (not item[0].ships, item[1], item[0].name)):
        width, middle = _CHARACTER_POINTS * len(_short(line.name)), _PLOT_POINTS[0] * x / most
        to_right = middle + 9 + width < _PLOT_POINTS[0]
        left, right = (middle + 9, middle + 9 + width) if to_right else (middle - 9 - width, middle - 9)
        for offset in _LABEL_OFFSETS:
            bottom = offset + _PLOT_POINTS[1] * (y - low) / (high - low)
            if all(right < a or b < left or abs(bottom - c) > _LINE_POINTS for a, b, c in taken):
                taken.append((left, right, bottom))
                found.append((line, (x, y), offset, to_right))
                break
    return found


def _steps(axes: mpl.axes.Axes, points: Sequence[CurvePoint], *, color: str, label: str) -> None:
    shown = [point for point in points if point.coverage > 0]
    axes.plot(
        [100 * point.coverage for point in shown],
        [100 * point.harm for point in shown],
        drawstyle="steps-post",
        color=color,
        linewidth=2.2,
        label=label,
    )


def _promise(axes: mpl.axes.Axes, cascade: CascadeEvaluation) -> None:
    certificate = cascade.certificate
    if certificate is None:
        return
    promised = 100 * certificate.max_harm
    axes.axhline(promised, color=_BAD, linewidth=1.4, linestyle=(0, (5, 4)))
    axes.annotate(
        f"promised: at most {promised:g}", (1, promised), xytext=(0, 5), textcoords="offset points", color=_BAD
    )
    harms = (point.harm for point in cascade.curve_certify if point.threshold == certificate.threshold)
    x, y = 100 * certificate.coverage, 100 * next(harms, certificate.harm_count / certificate.n)
    axes.plot([x], [y], "o", color=_FIRST, markersize=9)
    axes.plot([x, x], [0, y], color=_FIRST, linewidth=1, linestyle=(0, (2, 3)))
    axes.annotate(
        f"certified: {x:.1f}%\n{certificate.score} ≥ {certificate.threshold:.3f}",
        (x, y),
        xytext=(-10, 9) if x > 45 else (12, -4),
        textcoords="offset points",
        ha="right" if x > 45 else "left",
        color=_FIRST,
        fontweight="bold",
    )


def _top(cascade: CascadeEvaluation) -> float:
    """Choose the top of the picture: the promise in its upper half, and the curves as far as they are of the same
    size."""
    promised = 100 * cascade.certificate.max_harm if cascade.certificate else 0.0
    highest = max((100 * p.harm for p in (*cascade.curve_certify, *cascade.curve_test)), default=0.0)
    return max(1.6 * promised, 1.15 * min(highest, 3 * promised if promised else highest), 0.1)


def _value(line: CandidateFigures) -> float:
    return 0.0 if line.quality is None else line.quality.value


def _short(node: str) -> str:
    return node if len(node) <= 30 else f"…{node[-29:]}"


def _themed(svg: str) -> str:
    svg = svg[svg.index("<svg") :]  # the XML head has no place inside a page
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
