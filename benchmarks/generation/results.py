"""One run as it is saved, and the ratios that are taken of it: within a round, never between two."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.generation.asking import Answer
from benchmarks.generation.load_generator import Driven
from benchmarks.generation.serving import Turn
from benchmarks.generation.throughput import Timed

GENAI = ("in-turns", "batch")
_LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-genai", "aiohttp", "uvloop", "msgspec", "tokenizers")


class Rounds(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at one load."""

    load: str
    streams: int
    engine: str
    rounds: list[Timed]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run.

    Attributes:
        load_average: of the machine, before and after: ours is in the second.
        left_out: what could not be measured, and why.
    """

    date: str
    machine: dict[str, Any]
    load_average: tuple[float, float]
    versions: dict[str, str]
    options: dict[str, Any]
    throughput: list[Rounds] = []
    overhead: dict[str, list[Answer]] = {}
    turns: list[Turn] = []
    driven: Driven | None = None
    left_out: list[str] = []


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Median of ratios within rounds, and their range."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def described(tools: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": date.today().isoformat(),
        "machine": report.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}, **tools},
        "options": dict(options),
    }


def save(results: Results) -> Path:
    """Write everything, every round included; return the file."""
    report.RESULTS.mkdir(exist_ok=True)
    kind = f"{platform.system().lower()}-{platform.machine()}-{os.cpu_count()}cpu"
    path = report.RESULTS / f"{results.date}-generation-{kind}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    return path


def load(path: Path) -> Results:
    """Read saved results."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def by_engine(results: Results) -> dict[tuple[str, int], dict[str, list[Timed]]]:
    """Return the rounds of every engine, by load and streams."""
    found: dict[tuple[str, int], dict[str, list[Timed]]] = {}
    for each in results.throughput:
        found.setdefault((each.load, each.streams), {})[each.engine] = each.rounds
    return found


def ratio(ours: Sequence[float], others: Sequence[Sequence[float]], best: Callable[..., float] = max) -> Ratio:
    """Compare with the best of the others in each round."""
    ratios = sorted(one / best(rest) for one, *rest in zip(ours, *others, strict=True))
    return Ratio(middle=median(ratios), low=ratios[0], high=ratios[-1])


def added(front: Sequence[Answer], behind: Sequence[Answer], field: str) -> tuple[float, float]:
    """Return by what share, and by how many seconds, the median of what is in front is above that behind it."""
    one, other = (float(median(getattr(answer, field) for answer in answers)) for answers in (front, behind))
    return one / other - 1, one - other
