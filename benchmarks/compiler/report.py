"""Prints the comparison, judges it by the project's goals, and keeps it in ``benchmarks/results``."""

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


def show(rows: Sequence[Row]) -> None:
    """Print a table for each case, then penstock against the goals."""
    for name in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == name]
        print()
        columns = [
            "by", "accuracy", "drop, points", "kept", "b1 ms", "b32 ms", "b1 speed", "b32 speed", "KiB", "made in s", ""
        ]  # fmt: skip
        print(format_table(columns, [_line(row) for row in of_case], title=f"{name}: {of_case[0].what}"))
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


def save(
    rows: Sequence[Row], options: Mapping[str, Any], load_average: tuple[Sequence[float], Sequence[float]]
) -> Path:
    """Write everything as JSON; returns the file."""
    document = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "load_average": {"before": load_average[0], "after": load_average[1]},
        "versions": {"python": platform.python_version(), **{n: version(n) for n in _LIBRARIES}, "nncf": NNCF},
        "options": options,
        "goals": goals(rows),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    kind = f"{platform.system().lower()}-{platform.machine()}-{os.cpu_count()}cpu"
    path = RESULTS / f"{date.today().isoformat()}-compiler-{kind}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    return path


def _line(row: Row) -> list[object]:
    by = f"{row.maker} ({row.note})" if row.maker == "penstock" and row.note else row.maker
    seconds = f"{row.seconds:.1f}" if row.seconds else ""
    if row.quality is None:
        return [by, "none", "", "", "", "", "", "", "", seconds, row.problem]
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
        "",
    ]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"
