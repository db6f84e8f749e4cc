"""Writes what README and the documentation say of saved results, so that no figure of theirs is typed.

``python -m benchmarks.compiler.tables RESULTS.json`` rewrites their sections; each stands between a comment that names
the results and ``<!-- end -->``. A test compares them.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.compiler import report
from benchmarks.compiler.cases import CASES
from benchmarks.compiler.report import CaseResult, Results, Row

ROOT = Path(__file__).resolve().parents[2]
_CHARS = 128
_REASON_CHARS = 240
_MAKERS: Mapping[str, str] = {
    "penstock": "Penstock",
    "ort static": "`quantize_static`",
    "ort dynamic": "`quantize_dynamic`",
    "nncf": "NNCF",
}
_IN_README = ("cnn", "minilm-head", "minilm", "cancer-raw", "magika")
_BEGIN = re.compile(r"<!-- python -m benchmarks\.compiler\.tables (\S+) (\w+) -->.*?<!-- end -->", re.S)


_OWN_LOAD = 0.5  # what the case before leaves of its own


def own(results: Results) -> str:
    """Tell of the models that the benchmark trains here, or puts a head on."""
    return _part(results, [case for case in _in_order(results) if case.rows[0].kind != "real"])


def others(results: Results) -> str:
    """Tell of the models that others made."""
    return _part(results, [case for case in _in_order(results) if case.rows[0].kind == "real"])


def short(results: Results) -> str:
    """Tell what README shows."""
    cases = [results.by_name[name] for name in _IN_README if name in results.by_name]
    heads = ["model", *_MAKERS.values()]
    lines = [[case.rows[0].what, *(_cell(_of(case, maker)) for maker in _MAKERS)] for case in cases]
    return f"{_wrapped(_said(results, cases))}\n\n{_table(heads, lines)}"


SECTIONS: Mapping[str, Callable[[Results], str]] = {"own": own, "others": others, "short": short}
DOCUMENTS = ("README.md", "docs/explanation/compilation.md")


def rewritten(document: str, results: Results | None = None, path: str = "") -> str:
    """Return a document with its sections made again: of ``results``, or of what each names.

    Args:
        path: of the results, below the repository.
    """

    def made(section: re.Match[str]) -> str:
        named, found = (path, results) if results is not None else (section[1], report.load(ROOT / section[1]))
        comment = f"<!-- python -m benchmarks.compiler.tables {named} {section[2]} -->"
        return "\n\n".join([comment, SECTIONS[section[2]](found), "<!-- end -->"])

    return _BEGIN.sub(made, document)


def _part(results: Results, cases: Sequence[CaseResult]) -> str:
    heads = ["model", "ships", "compiled in", *_MAKERS.values(), "promise"]
    lines, notes = [], list[str]()
    for case in cases:
        ours = _of(case, "penstock")
        ships = "" if ours is None or ours.quality is None else ours.note
        took = "" if ours is None else f"{ours.seconds:.0f} s"
        cells = [_cell(_of(case, maker)) for maker in _MAKERS]
        lines.append([case.rows[0].what, ships, took, *cells, _promise(ours)])
        notes += _notes(case)
    parts = [_wrapped(_said(results, cases)), _table(heads, lines)]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _in_order(results: Results) -> list[CaseResult]:
    """Return the cases as the benchmark lists them, however they were measured."""
    places = {name: place for place, name in enumerate(CASES)}
    return sorted(results.cases, key=lambda case: places.get(case.case, len(places)))


def _said(results: Results, cases: Sequence[CaseResult]) -> str:
    """Say when and on what it was measured, and how busy that was."""
    if not cases:
        return "These results have none of the models."
    dates = sorted({case.date for case in cases})
    loads = [case.load_average for case in cases]
    cpus = results.machine["cpus"]
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    busy = f"; others used it as well: its load was {min(loads):.1f} to {max(loads):.1f} when cases began"
    quiet = f", with a load of at most {max(loads):.1f} when cases began"
    libraries = f"onnxruntime {results.versions['onnxruntime']}, {results.versions['nncf'].replace('==', ' ')}"
    load = busy if max(loads) > cpus + _OWN_LOAD else quiet
    return (
        f"Of {when}, on a machine with {cpus} CPUs ({results.machine['cpu']}){load}; {libraries}. "
        f"A cell has the speed against float32 at batch "
        f"{_batches(cases)}, and the points lost, in brackets with their 95% interval. "
        f"Each tool had {_budgets(cases)} s."
    )


def _batches(cases: Sequence[CaseResult]) -> str:
    sizes = {tuple(row.latency) for case in cases for row in case.rows if row.latency}
    return " or ".join(" and ".join(size) for size in sorted(sizes))


def _budgets(cases: Sequence[CaseResult]) -> str:
    return " or ".join(f"{budget:.0f}" for budget in sorted({case.budget_s for case in cases}))


def _of(case: CaseResult, maker: str) -> Row | None:
    return next((row for row in case.rows if row.maker == maker), None)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.quality is None:
        return "none"
    drop = row.quality.drop
    speeds = ", ".join(f"{item.speedup:.2f}x" for item in row.latency.values())
    kept = row.quality.kept
    neighbours = f", {kept['neighbour kept']:.1%} of neighbours kept" if "neighbour kept" in kept else ""
    lost = f"{_points(drop.value)} ({_points(drop.low)} to {_points(drop.high)})"
    return f"{speeds}; {lost}{neighbours}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".replace("-0.0", "0.0")


def _promise(row: Row | None) -> str:
    if row is None or row.quality is None:
        return "-"
    return row.promise.split(":")[0] if row.promise.startswith("refused") else row.promise or "-"


def _notes(case: CaseResult) -> Iterator[str]:
    """Say why a cell is empty or a promise refused; what is the same for several tools stands once."""
    reasons: dict[str, list[str]] = {}
    for maker, name in _MAKERS.items():
        row = _of(case, maker)
        if row is not None and row.quality is None:
            reasons.setdefault(_cut(row.problem), []).append(name)
    ours = _of(case, "penstock")
    if ours is not None and ours.promise.startswith("refused: "):
        reasons.setdefault(_cut(ours.promise.removeprefix("refused: ")), []).append("promise refused")
    for reason, names in reasons.items():
        yield f"- {case.rows[0].what}, {', '.join(names)}: {reason}"


def _cut(reason: str) -> str:
    plain = " ".join(reason.split()).replace("|", "/").replace("<", "(").replace(">", ")")
    half = _REASON_CHARS // 2  # a library's message has what happened in front, and why at its end
    return plain if len(plain) <= _REASON_CHARS else f"{plain[:half]} ... {plain[-half:]}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in (heads, *lines)]
    return "\n".join([rows[0], "|---" * len(heads) + "|", *rows[1:]])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _CHARS, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler.tables", description=__doc__)
    parser.add_argument("results", type=Path, help="a file of benchmarks/results")
    chosen = parser.parse_args().results.resolve()
    for name in DOCUMENTS:
        file = ROOT / name
        file.write_text(rewritten(file.read_text(), report.load(chosen), str(chosen.relative_to(ROOT))))
        print(f"written: {name}")
