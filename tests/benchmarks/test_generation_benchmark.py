"""The benchmark of language models runs from end to end on a model that is part of this repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime_genai", reason="the extra genai is not installed")
from benchmarks import report
from benchmarks.generation import __main__ as command
from benchmarks.generation import load_generator, results, tables
from benchmarks.generation.asking import Answer
from benchmarks.generation.peers import PROGRAM, TOOLS, Tool
from benchmarks.generation.results import Results, Rounds
from benchmarks.generation.serving import ALONE, ATTACHED, V1, V2
from benchmarks.generation.throughput import Timed

MODEL = Path(__file__).parents[2] / "examples" / "codecomplete" / "models" / "edge-int4"


def answer(first_s: float, next_s: float, cached: int = 0) -> Answer:
    return Answer(first_s=first_s, next_s=next_s, cached=cached, prompt_tokens=10)


def found(**changes: object) -> Results:
    fields = results.described({}, {"rounds": 1, "threads": 2}) | {"load_average": (0.1, 2.0)}
    return Results(**fields | changes)


def rounds(engine: str, *speeds: float, load: str = "mixed", streams: int = 4) -> Rounds:
    timed = [Timed(tokens_per_s=each, tokens_per_cpu_s=each, first_s=1 / each) for each in speeds]
    return Rounds(load=load, streams=streams, engine=engine, rounds=timed)


def test_every_part_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(MODEL), "--rounds", "1", "--streams", "2", "--threads", "1", "--without-peers"]
    arguments += ["--prompts", "2", "--turn-chars", "400"]
    monkeypatch.setattr(sys, "argv", ["generation", *arguments])
    assert command.main() == 0
    said = capsys.readouterr().out
    assert re.findall(r"^\| (equal|mixed) \| 2 \|", said, re.M) == ["equal", "mixed"] * 2
    assert re.findall(r"^\| (\S.*?) \| (\S.*?)? \| \d", said, re.M)
    assert all(f"\n| {name} |" in said for name in (ALONE, V1, V2, ATTACHED))
    lying = re.search(r"(\d+) tokens of which\s(\d+) lie in the slot of the first", said)
    assert lying is not None
    assert 0.5 < int(lying[2]) / int(lying[1]) < 1


def test_the_ratio_is_to_the_better_of_the_others_within_a_round() -> None:
    assert str(results.ratio([6.0, 4.0], [[3.0, 1.0], [1.0, 2.0]])) == "2.00 (2.00 to 2.00)"
    assert str(results.ratio([6.0, 4.0], [[3.0, 1.0], [1.0, 2.0]], min)) == "5.00 (4.00 to 6.00)"


def test_goals_are_said_to_be_reached_or_missed() -> None:
    measured = [rounds("slots", 13, 13), rounds("in-turns", 10, 5), rounds("batch", 5, 10), rounds("ctranslate2", 90)]
    assert "| 1.30 (1.30 to 1.30) | 1.30 (1.30 to 1.30) | reached |" in tables.written(found(throughput=measured[:3]))
    measured[0] = rounds("slots", 11, 11)
    assert "| missed |" in tables.written(found(throughput=measured[:3]))
    overhead = {ALONE: [answer(0.1, 0.01)], V1: [answer(0.102, 0.0108)], V2: [answer(0.104, 0.012)]}
    said = tables.written(found(overhead=overhead))
    assert "+2.00 ms (+2%), reached | +0.80 ms (+8%), reached" in said
    assert "+4.00 ms (+4%), missed | +2.00 ms (+20%), missed" in said


def test_what_the_load_generator_exports_is_read() -> None:
    spread = {"unit": "ms", "avg": 1.0, "p50": 2.0, "p90": 3.0, "p99": 4.0}
    said = {
        "request_count": {"unit": "requests", "avg": 24.0},
        "request_error_rate": {"unit": "%", "avg": 25.0},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 416.6},
        "time_to_first_token": spread,
        "inter_token_latency": spread,
    }
    driven = load_generator.read_export(said, "aiperf profile")
    assert (driven.requests, driven.errors, driven.first_ms["p99"]) == (24, 0.25, 4.0)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_others_made_is_pinned(tool: Tool) -> None:
    assert tool.version
    assert PROGRAM.exists()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in tool.requirements)


def test_the_page_says_what_the_saved_results_say() -> None:
    """Its section is written by ``python -m benchmarks.generation.tables``, never typed."""
    page = tables.DOCUMENT.read_text(encoding="utf-8")
    assert "<!-- python -m benchmarks.generation.tables " in page
    assert tables.rewritten(page) == page
    named = re.search(r"<!-- python -m benchmarks.generation.tables (\S+) -->", page)
    assert named is not None
    assert (tables.ROOT / named[1]).parent == report.RESULTS
