"""The benchmark of language models runs from end to end on a model that is part of this repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime_genai", reason="the extra genai is not installed")
from benchmarks import generation

MODEL = Path(__file__).parents[2] / "examples" / "codecomplete" / "models" / "edge-int4"


def test_every_engine_answers_every_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(MODEL), "--rounds", "1", "--streams", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["generation", *arguments])
    assert generation.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["equal", "2"], ["mixed", "2"]]


def test_the_ratio_is_to_the_better_of_the_others_within_a_round() -> None:
    assert generation._ratio([[6.0, 4.0], [3.0, 1.0], [1.0, 2.0]]) == "2.00 (2.00 to 2.00)"
