"""Prints the comparison, judges it by the project's goals, and keeps it in ``benchmarks/results``, case by case.

What documents say of it is ``benchmarks.compiler.tables``'s.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.compiler.measure import Latency, Quality
from benchmarks.compiler.quantizers import NNCF
from benchmarks.report import RESULTS, machine
from penstock.cli.output import format_table

SPEED_GOALS: Mapping[str, float] = {"cnn": 2.0, "encoder": 2.0, "small": 1.0, "real": 1.0}
"""Times float32's speed at batch 1, by kind of case."""

MAX_DROP = 0.01
NOISE = 0.97
"""A ratio of two measurements of one model comes out this low now and then: no slower."""

_LIBRARIES = ("penstock", "numpy", "onnx", "onnxruntime", "scikit-learn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One maker's model of one case; without ``quality`` it made none, and ``problem`` says why."""

    case: str
    kind: str
    what: str
    maker: str
    note: str
    max_batch: int
    problem: str
    seconds: float
    size_bytes: int
    quality: Quality | None
    latency: dict[str, Latency]
    predicted: Mapping[str, Any]
    promise: str = ""


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One case as it was measured.

    Attributes:
        load_average: of the last minute when it began: what the machine did besides.
        seconds: of calls in turn for each batch size.
        budget_s: what each tool had at most.
        took_s: all of it, the model's first download or export included.
    """

    case: str
    date: str
    load_average: float
    makers: tuple[str, ...]
    seconds: float
    budget_s: float
    took_s: float
    rows: list[Row]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine measured with one set of versions, as it is saved; a case has its newest measurement."""

    machine: dict[str, Any]
    versions: dict[str, Any]
    cases: list[CaseResult]
    goals: list[list[Any]] = []

    @property
    def by_name(self) -> dict[str, CaseResult]:
        """The cases by name, in the order in which they were first measured."""
        return {case.case: case for case in self.cases}


def show(rows: Sequence[Row]) -> None:
    """Print a table for each case, then penstock against the goals."""
    for name in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == name]
        print()
        sizes = next((tuple(row.latency) for row in of_case if row.latency), ())
        columns = [
            "by", "accuracy", "drop, points", "kept", *(f"b{size} ms" for size in sizes),
            *(f"b{size} speed" for size in sizes), "KiB", "made in s", "",
        ]  # fmt: skip
        print(format_table(columns, [_line(row, sizes) for row in of_case], title=f"{name}: {of_case[0].what}"))
    print()
    print(format_table(["case", "goal", "measured", ""], goals(rows), title="penstock against the goals"))


def goals(rows: Sequence[Row]) -> list[list[object]]:
    """Return (case, goal, measured, verdict) of penstock's models."""
    found: list[list[object]] = []
    for row in rows:
        if row.maker != "penstock" or row.quality is None:
            if row.maker == "penstock":
                found.append([row.case, "a model", row.problem, "missed"])
            continue
        drop = row.quality.drop.value
        found.append([row.case, "drop <= 1 point", f"{100 * drop:.2f}", _verdict(drop <= MAX_DROP)])
        if "neighbour kept" in row.quality.kept:  # of an embedding, where accuracy can hide much
            share = row.quality.kept["neighbour kept"]
            found.append([row.case, "nearest neighbour kept >= 99%", f"{share:.1%}", _verdict(share >= 1 - MAX_DROP)])
        goal = SPEED_GOALS[row.kind]
        for batch, measured in row.latency.items():
            if goal > 1 or batch == "1":  # a device asks row by row: what is gated
                reached = measured.speedup >= (goal if goal > 1 else NOISE)
                words = f">= {goal:g}x of fp32, batch {batch}" if goal > 1 else f"no slower than fp32, batch {batch}"
                found.append([row.case, words, f"{measured.speedup:.2f}x", _verdict(reached)])
    return found


def default_path() -> Path:
    """Return where today's results of such a machine are kept."""
    kind = f"{platform.system().lower()}-{platform.machine()}-{os.cpu_count()}cpu"
    return RESULTS / f"{date.today().isoformat()}-compiler-{kind}.json"


def save(measured: CaseResult, path: Path) -> None:
    """Put a case into the results at ``path``, in place of what they have of it.

    Raises:
        SystemExit: what is there was measured on another machine, or with other versions.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}, "nncf": NNCF[0]}
    empty = Results(machine=machine(), versions=versions, cases=[])
    before = load(path) if path.exists() else empty
    if (before.machine, before.versions) != (empty.machine, empty.versions):
        raise SystemExit(f"{path} is of another machine or of other versions; name another file with --into")
    cases = list({**before.by_name, measured.case: measured}.values())
    found = Results(
        machine=empty.machine,
        versions=versions,
        cases=cases,
        goals=goals([row for case in cases for row in case.rows]),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_suffix(".making")
    making.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    making.replace(path)


def load(path: Path) -> Results:
    """Read saved results."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def _line(row: Row, sizes: Sequence[str]) -> list[object]:
    by = f"{row.maker} ({row.note})" if row.maker == "penstock" and row.note else row.maker
    seconds = f"{row.seconds:.1f}" if row.seconds else ""
    if row.quality is None:
        return [by, "none", "", "", *[""] * (2 * len(sizes)), "", seconds, row.problem]
    drop = row.quality.drop
    kept = ", ".join(f"{value:.3f}" for value in row.quality.kept.values())
    speeds = [f"{item.speedup:.2f}x" for item in row.latency.values()]
    return [
        by,
        f"{100 * row.quality.accuracy:.2f}%",
        f"{100 * drop.value:.2f} [{100 * drop.low:.1f}, {100 * drop.high:.1f}]",
        kept,
        *(f"{item.p50_ms:.3g}" for item in row.latency.values()),
        *speeds,
        f"{row.size_bytes / 1024:,.0f}",
        seconds,
        row.promise,
    ]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"
