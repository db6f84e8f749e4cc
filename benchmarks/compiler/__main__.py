"""``python -m benchmarks.compiler``: every case through every maker, on the same rows and machine, in one run."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compiler import measure, report
from benchmarks.compiler.case import Case
from benchmarks.compiler.cases import CASES
from benchmarks.compiler.quantizers import MAKERS, Made
from benchmarks.compiler.report import Row
from penstock.errors import PenstockError

ROOT = Path(__file__).resolve().parents[2] / "out" / "bench" / "compiler"
REFERENCE = "fp32"
_QUICK = ("digits-mlp", "cancer-raw")


def main() -> int:
    options = _options()
    before = os.getloadavg()
    rows: list[Row] = []
    saved: Path | None = None
    for name in options.cases:
        _progress(f"{name}: model and data")
        rows += _compared(CASES[name](options.dir), options)
        if options.save:  # after each case: an interrupted run keeps what it has
            chosen = {"cases": options.cases, "makers": options.makers, "seconds": options.seconds}
            saved = report.save(rows, chosen, (before, os.getloadavg()))
    report.show(rows)
    if saved is not None:
        print(f"\n{saved}")
    return 0


class _Options(argparse.Namespace):
    quick: bool
    cases: Sequence[str]
    makers: Sequence[str]
    seconds: float
    save: bool
    dir: Path


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler", description=__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--quick", action="store_true", help="two small cases, no NNCF, nothing saved: a first look")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=None)
    parser.add_argument("--makers", nargs="+", choices=MAKERS, default=None, help="fp32 is always among them")
    parser.add_argument("--seconds", type=float, default=None, help="of interleaved calls for each batch size")
    parser.add_argument("--save", action=flag, default=None, help="write benchmarks/results")
    parser.add_argument("--dir", type=Path, default=ROOT, help="for models and data, which are kept")
    options = parser.parse_args(namespace=_Options())
    options.dir = options.dir.resolve()
    options.cases = options.cases or (_QUICK if options.quick else tuple(CASES))
    makers = options.makers or [name for name in MAKERS if not (options.quick and name == "nncf")]
    options.makers = (REFERENCE, *(name for name in makers if name != REFERENCE))
    options.seconds = options.seconds or (1.0 if options.quick else 15.0)
    options.save = not options.quick if options.save is None else options.save
    return options


def _compared(case: Case, options: _Options) -> list[Row]:
    """Make every tool's model of one case, and compare their figures."""
    made: dict[str, Made] = {}
    for maker in options.makers:
        _progress(f"{case.name}: {maker}")
        made[maker] = _made(case, maker, options.dir)
    models = {
        name: measure.load(item.model, max_batch=item.max_batch)
        for name, item in made.items()
        if item.model is not None
    }
    _progress(f"{case.name}: accuracy")
    qualities = measure.qualities(case, models, REFERENCE)
    _progress(f"{case.name}: latency")
    latencies = measure.latencies(case, models, REFERENCE, budget_s=options.seconds)
    return [
        Row(
            case=case.name,
            kind=case.kind,
            what=case.what,
            maker=name,
            note=item.note,
            max_batch=item.max_batch,
            problem=item.problem,
            seconds=item.seconds,
            size_bytes=0 if item.model is None else item.model.stat().st_size,
            quality=qualities.get(name),
            latency=latencies.get(name, {}),
            predicted=item.predicted,
        )
        for name, item in made.items()
    ]


def _made(case: Case, maker: str, root: Path) -> Made:
    """Make one tool's model in a new directory; what it cannot make is a line of the table and does not end the run."""
    out = root / "made" / case.name / maker.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.monotonic()
    try:
        return MAKERS[maker](case, out)
    except PenstockError as error:
        return Made(model=None, problem=error.message, seconds=time.monotonic() - began)


_BEGAN = time.monotonic()


def _progress(message: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
