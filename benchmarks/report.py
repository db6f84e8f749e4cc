"""Prints what was measured, and keeps it in ``benchmarks/results`` with the machine and the versions.

``python -m benchmarks.report RESULTS.json`` prints what README says of it, to be pasted there.
"""

from __future__ import annotations

import argparse
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.load import Sample
from benchmarks.peers import PEERS
from benchmarks.plan import HELP_S, IMPORT_RATIO, NAMES, SDK_ROWS_PER_S, SERVERS, Key, Ratio, ratios, typical
from benchmarks.startup import Startup
from penstock.cli.output import format_table

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("penstock", "numpy", "onnxruntime", "grpcio", "protobuf", "aiohttp", "uvloop", "msgspec")
_README_CHARS = 128


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One server at one load: every round, and the medians."""

    model: str
    server: str
    callers: int
    median: Sample
    rounds: list[Sample]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, as it is saved."""

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    startup: Startup | None
    ratios: list[Ratio]
    samples: list[Measured]

    @property
    def by_key(self) -> dict[Key, list[Sample]]:
        """The rounds of every measurement."""
        return {(each.model, each.server, each.callers): each.rounds for each in self.samples}


def gather(samples: Mapping[Key, Sequence[Sample]], startup: Startup | None, options: Mapping[str, Any]) -> Results:
    """Put a run together with the machine and with the versions of what it measured."""
    servers = {server for _, server, _ in samples}
    peers = {peer.package: peer.version for peer in PEERS if servers & peer.rows.keys()}
    return Results(
        date=date.today().isoformat(),
        machine=machine(),
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}, **peers},
        options=dict(options),
        startup=startup,
        ratios=ratios(samples),
        samples=[
            Measured(model=model, server=server, callers=callers, median=typical(rounds), rounds=list(rounds))
            for (model, server, callers), rounds in samples.items()
        ],
    )


def show(results: Results) -> None:
    """Print tables of rates and of ratios against their goals."""
    samples, startup = results.by_key, results.startup
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
        for r in results.ratios
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


def for_readme(results: Results, path: Path) -> str:
    """Return README's words, table and figures about a run whose results are at ``path``."""
    shown = [ratio for ratio in results.ratios if ratio.under in NAMES]
    callers = sorted({ratio.callers for ratio in shown})
    rows: dict[tuple[str, str, str], dict[int, str]] = {}
    for ratio in shown:
        rows.setdefault((ratio.over, ratio.under, ratio.model), {})[ratio.callers] = _share(ratio.ratio)
    of = f"median of {results.options['rounds']} rounds, {results.machine['cpus']}-CPU machine"
    table = [f"| ratio of rows a second, {of} | {' | '.join(_callers(count) for count in callers)} |"]
    table.append("|---" * (1 + len(callers)) + "|")
    for (over, under, model), found in rows.items():
        cells = " | ".join(found.get(count, "-") for count in callers)
        table.append(f"| {NAMES[over]} / {NAMES[under]}, {NAMES[model]} | {cells} |")
    how = "all servers on one CPU (`--pin`)" if results.options["pinned"] else "every server as it starts by default"
    there = [f"{peer.package} {results.versions[peer.package]}" for peer in PEERS if peer.package in results.versions]
    absent = [peer.name for peer in PEERS if peer.package not in results.versions]
    said = f"Of {results.date}, {how}, on a machine with {results.machine['cpus']} CPUs ({results.machine['cpu']}); "
    said += ", ".join([f"onnxruntime {results.versions['onnxruntime']}", *there])
    said += f"; without {', '.join(absent)}. All figures: " if absent else ". All figures: "
    said += f"[{path.name}](benchmarks/results/{path.name})."
    parts = [_wrapped(said), "\n".join(table), _wrapped(" ".join(_sentences(results, shown)))]
    command = f"<!-- python -m benchmarks.report benchmarks/results/{path.name} -->"
    return "\n\n".join([command, *parts, "<!-- end -->"])


def _sentences(results: Results, shown: Sequence[Ratio]) -> list[str]:
    """Say what the table does not hold: what stayed behind, the SDK's rate, and what starting costs."""
    found = []
    behind: dict[tuple[str, str], list[str]] = {}
    for ratio in shown:
        if ratio.verdict == "missed":
            behind.setdefault((ratio.over, ratio.model), []).append(str(ratio.callers))
    if behind:
        goal = max(ratio.at_least or 0 for ratio in shown)
        rows = [f"{NAMES[over]} at {', '.join(callers)} ({NAMES[model]})" for (over, model), callers in behind.items()]
        found.append(f"Behind the goal of {goal:g}, by number of callers: {'; '.join(rows)}.")
    rates = [f"{typical(samples).rows_per_s / 1e3:.0f} thousand rows a second at {callers} callers"
             for (model, server, callers), samples in results.by_key.items()
             if (model, server) == ("digits", "core-sdk")]  # fmt: skip
    if rates:
        found.append(
            f"Through the SDK, which merges concurrent rows into one call, the core answers {', '.join(rates)}."
        )
    if results.startup:
        cost = results.startup.import_client_s / results.startup.import_numpy_grpc_s
        found.append(f"`from penstock import Client` costs {cost:.2f} of `import numpy, grpc`;")
        found.append(f"`penstock --help` answers in {results.startup.help_s * 1e3:.0f} ms.")
    return found


def _callers(count: int) -> str:
    return "1 caller" if count == 1 else f"{count} callers"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _README_CHARS, break_long_words=False, break_on_hyphens=False)


def save(results: Results) -> Path:
    """Write everything, every round included, as JSON; returns the file."""
    RESULTS.mkdir(exist_ok=True)
    kind = f"{platform.system().lower()}-{platform.machine()}-{os.cpu_count()}cpu"
    path = RESULTS / f"{results.date}-{kind}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    return path


def load(path: Path) -> Results:
    """Read saved results."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def machine() -> dict[str, Any]:
    """Say what the figures depend on; nothing that names the host."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"system": platform.system(), "arch": platform.machine(), "cpu": cpu, "cpus": os.cpu_count()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Print README's section of a run.")
    parser.add_argument("results", type=Path, help="a file of benchmarks/results")
    chosen = parser.parse_args().results
    print(for_readme(load(chosen), chosen))
