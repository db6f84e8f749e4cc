"""Prints what was measured, and keeps it in ``benchmarks/results`` with the machine and the versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.load import Sample
from benchmarks.plan import HELP_S, IMPORT_RATIO, SDK_ROWS_PER_S, SERVERS, Key, ratios, typical
from benchmarks.startup import Startup
from penstock.cli.output import format_table

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("penstock", "numpy", "onnxruntime", "grpcio", "protobuf", "aiohttp", "uvloop", "msgspec")


def show(samples: Mapping[Key, Sequence[Sample]], startup: Startup | None) -> None:
    """Print tables of rates and of ratios against their goals."""
    for model in dict.fromkeys(key[0] for key in samples):
        rows = []
        for (of, server, callers), measured in samples.items():
            if of == model:
                median = typical(measured)
                cpu = _figure(median.cpu_us) if median.cpu_us else ""
                figures = [_figure(median.rows_per_s), _figure(median.p50_ms), _figure(median.p99_ms), cpu]
                rows.append([server, callers, *figures, SERVERS[server]])
        print()
        columns = ["server", "callers", "rows/s", "p50 ms", "p99 ms", "cpu us/row", "what"]
        print(format_table(columns, rows, title=model))
    compared = [
        [r.model, f"{r.over} / {r.under}", r.callers, _share(r.ratio), f"{_share(r.low)} to {_share(r.high)}",
         _share(r.cpu_ratio) if r.cpu_ratio else "", f"{r.at_least:.2f}" if r.at_least else "", r.verdict]
        for r in ratios(samples)
    ]  # fmt: skip
    compared += _single_goals(samples, startup)
    if compared:
        print()
        columns = ["model", "ratio", "callers", "median", "range", "by cpu", "goal", ""]
        print(format_table(columns, compared, title="against the goals"))


def _single_goals(samples: Mapping[Key, Sequence[Sample]], startup: Startup | None) -> list[list[object]]:
    """Print goals that are a figure of their own."""
    found: list[list[object]] = []
    for callers in (64, 512):
        if measured := samples.get(("digits", "core-sdk", callers)):
            rate = typical(measured).rows_per_s
            verdict = "reached" if rate >= SDK_ROWS_PER_S else "missed"
            found.append(["digits", "core-sdk rows/s", callers, f"{rate:,.0f}", "", "", f"{SDK_ROWS_PER_S:,}", verdict])
    if startup:
        ratio = startup.import_client_s / startup.import_numpy_grpc_s
        name = "import Client / import numpy, grpc"
        found.append(["", name, "", f"{ratio:.2f}", "", "", f"<= {IMPORT_RATIO}", _at_most(ratio, IMPORT_RATIO)])
        shown = f"{startup.help_s * 1e3:.0f} ms"
        found.append(["", "penstock --help", "", shown, "", "", "< 200 ms", _at_most(startup.help_s, HELP_S)])
    return found


def _figure(value: float) -> str:
    """Format a figure with three digits that count, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _at_most(value: float, goal: float) -> str:
    return "reached" if value <= goal else "missed"


def save(samples: Mapping[Key, Sequence[Sample]], startup: Startup | None, options: Mapping[str, Any]) -> Path:
    """Write everything, every round included, as JSON; returns the file."""
    document = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        "options": options,
        "startup": startup,
        "ratios": ratios(samples),
        "samples": [
            {"model": model, "server": server, "callers": callers, "median": typical(rounds), "rounds": rounds}
            for (model, server, callers), rounds in samples.items()
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    kind = f"{platform.system().lower()}-{platform.machine()}-{os.cpu_count()}cpu"
    path = RESULTS / f"{date.today().isoformat()}-{kind}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    return path


def machine() -> dict[str, Any]:
    """Say what the figures depend on; nothing that names the host."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"system": platform.system(), "arch": platform.machine(), "cpu": cpu, "cpus": os.cpu_count()}
