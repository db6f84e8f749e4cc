"""``python -m benchmarks.compiler``: every case through every maker, on the same rows and machine, in one run.

Each step of a case runs in a process of its own with a limit (``bounded``): what takes too long, fails or dies is a
line of the table. Results are written after each case, into the file of earlier runs where there is one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from benchmarks import environments
from benchmarks.compiler import bounded, measure, report
from benchmarks.compiler.bounded import NotDone
from benchmarks.compiler.case import Case
from benchmarks.compiler.cases import CASES
from benchmarks.compiler.measure import Figures
from benchmarks.compiler.quantizers import MAKERS, NNCF, Made
from benchmarks.compiler.report import CaseResult, Row

ROOT = Path(__file__).resolve().parents[2] / "out" / "bench" / "compiler"
REFERENCE = "fp32"
_QUICK = ("digits-mlp", "cancer-raw")
_MODEL_AND_DATA_S = 900.0  # downloads and exports, the first time
_SECONDS, _BUDGET_S = 10.0, 240.0


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what runs ends, as by an interrupt
    options.missing = _missing(options)
    found: list[CaseResult] = []
    for name in options.cases:
        found.append(_case(name, options))
        if options.save:  # after each case: an interrupted run keeps what it has
            report.save(found[-1], options.into)
    report.show([row for case in found for row in case.rows])
    if options.save:
        print(f"\n{options.into}")
    return 0


class _Options(argparse.Namespace):
    quick: bool
    cases: Sequence[str]
    makers: Sequence[str]
    seconds: float
    budget: float
    save: bool
    into: Path
    dir: Path
    missing: dict[str, str]


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler", description=__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--quick", action="store_true", help="two small cases, no NNCF, nothing saved: a first look")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=None)
    parser.add_argument("--makers", nargs="+", choices=MAKERS, default=None, help="fp32 is always among them")
    parser.add_argument("--seconds", type=float, default=None, help="of interleaved calls for each batch size")
    parser.add_argument("--budget", type=float, default=_BUDGET_S, help="seconds for each tool and case")
    parser.add_argument("--save", action=flag, default=None, help="write benchmarks/results")
    parser.add_argument("--into", type=Path, default=None, help="the file to write; rows of other cases in it stay")
    parser.add_argument("--dir", type=Path, default=ROOT, help="for models and data, which are kept")
    options = parser.parse_args(namespace=_Options())
    options.dir = options.dir.resolve()
    options.cases = options.cases or (_QUICK if options.quick else tuple(CASES))
    makers = options.makers or [name for name in MAKERS if not (options.quick and name == "nncf")]
    options.makers = (REFERENCE, *(name for name in makers if name != REFERENCE))
    options.seconds = options.seconds or (1.0 if options.quick else _SECONDS)
    options.save = (not options.quick or options.into is not None) if options.save is None else options.save
    options.into = (options.into or report.default_path()).resolve()
    return options


def _missing(options: _Options) -> dict[str, str]:
    """Install NNCF before anything is timed; return which makers are not here, and why."""
    if "nncf" in options.makers:
        try:
            environments.interpreter(options.dir / "nncf", NNCF, announce=_progress)
        except environments.NotInstalled as error:
            return {"nncf": str(error)}
    return {}


def _case(name: str, options: _Options) -> CaseResult:
    """Make every tool's model of one case, and compare their figures; a case that cannot be made says why."""
    began, before = time.monotonic(), os.getloadavg()[0]
    _progress(f"{name}: model and data")
    try:
        case = bounded.call(CASES[name], options.dir, limit_s=_MODEL_AND_DATA_S)
        rows = _compared(case, options)
    except NotDone as error:
        rows = [_row(name, "", name, "penstock", Made(model=None, problem=str(error)), Figures())]
    return CaseResult(
        case=name,
        date=date.today().isoformat(),
        load_average=before,
        makers=tuple(options.makers),
        seconds=options.seconds,
        budget_s=options.budget,
        took_s=round(time.monotonic() - began, 1),
        rows=rows,
    )


def _compared(case: Case, options: _Options) -> list[Row]:
    made: dict[str, Made] = {}
    for maker in options.makers:
        _progress(f"{case.name}: {maker}")
        made[maker] = _made(case, maker, options)
    _progress(f"{case.name}: accuracy and latency")
    figures = _measured(case, made, options)
    return [_row(case.name, case.kind, case.what, name, item, figures[name]) for name, item in made.items()]


def _made(case: Case, maker: str, options: _Options) -> Made:
    """Make one tool's model in a new directory; what it cannot make is a line of the table and does not end the run."""
    if maker in options.missing:
        return Made(model=None, problem=options.missing[maker])
    out = options.dir / "made" / case.name / maker.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.monotonic()
    try:
        return bounded.call(MAKERS[maker], case, out, options.budget, limit_s=options.budget)
    except NotDone as error:
        return Made(model=None, problem=str(error), seconds=time.monotonic() - began)


def _measured(case: Case, made: dict[str, Made], options: _Options) -> dict[str, Figures]:
    """Ask all models in turn, in one process; where that fails, each beside the reference, to see whose fault it is."""
    there = {name: (item.model, item.max_batch) for name, item in made.items() if item.model is not None}
    found = dict.fromkeys(made, Figures())
    try:
        return found | bounded.call(measure.figures, case, there, REFERENCE, options.seconds, limit_s=options.budget)
    except NotDone as error:
        _progress(f"{case.name}: {error}")
    for name in there:
        pair = {one: there[one] for one in (REFERENCE, name)}
        try:
            found[name] = bounded.call(measure.figures, case, pair, REFERENCE, options.seconds, limit_s=options.budget)[
                name
            ]
        except NotDone as error:
            found[name] = Figures(problem=f"cannot be measured: {error}")
    return found


def _row(case: str, kind: str, what: str, maker: str, made: Made, figures: Figures) -> Row:
    return Row(
        case=case,
        kind=kind,
        what=what,
        maker=maker,
        note=made.note,
        max_batch=made.max_batch,
        problem=made.problem or figures.problem,
        seconds=round(made.seconds, 1),
        size_bytes=0 if made.model is None else made.model.stat().st_size,
        quality=figures.quality,
        latency=figures.latency or {},
        predicted=made.predicted,
        promise=made.promise,
    )


_BEGAN = time.monotonic()


def _progress(message: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
