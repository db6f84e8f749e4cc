"""The compiler's benchmark runs from end to end on one small case, says what failed, and judges by the goals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compiler import __main__ as benchmark
from benchmarks.compiler import case, measure, report, sentences
from benchmarks.compiler.cases import wine
from benchmarks.compiler.measure import Latency, Quality
from benchmarks.compiler.quantizers import Made
from benchmarks.compiler.report import Row
from compiler.artifact.evaluation import Drop
from penstock.errors import CompileError


def drop(value: float) -> Drop:
    return Drop(value=value, low=0, high=0.02, n=200, lost=200 * value, won=0, is_counted=True, bound=0.02, level=0.05)


def row(**changes: object) -> Row:
    fields: dict[str, object] = {
        "case": "a", "kind": "cnn", "what": "", "maker": "penstock", "note": "int8", "max_batch": 0,
        "problem": "", "seconds": 1.0, "size_bytes": 2048, "predicted": {},
        "quality": Quality(accuracy=0.9, drop=drop(0.005), kept={"agreement": 1.0}),
        "latency": {batch: Latency(p50_ms=1.0, speedup=2.5, low=2.4, high=2.6) for batch in ("1", "32")},
    }  # fmt: skip
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def test_one_case_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(case: case.Case, out: Path) -> Made:
        raise CompileError("cannot be installed")

    monkeypatch.setitem(benchmark.MAKERS, "nncf", breaks)  # type: ignore[index]
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    options = ["--cases", "wine-mlp", "--seconds", "0.1", "--dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks.compiler", *options])
    assert benchmark.main() == 0
    printed = capsys.readouterr().out
    assert "cannot be installed" in printed
    for maker in ("fp32", "penstock (", "ort static", "ort dynamic"):
        assert f"\n{maker}" in printed
    (saved,) = (tmp_path / "results").iterdir()
    assert b'"load_average"' in saved.read_bytes()


def test_drops_are_paired_on_the_tested_rows(tmp_path: Path) -> None:
    found = wine(tmp_path)
    models = {"fp32": measure.load(found.model), "again": measure.load(found.model, max_batch=1)}
    qualities = measure.qualities(found, models, "fp32")
    assert qualities["again"].drop.value == 0
    assert qualities["again"].kept == {"agreement": 1.0}
    assert qualities["fp32"].drop.n == len(found.labels("test"))


def test_no_row_serves_two_uses(tmp_path: Path) -> None:
    found = wine(tmp_path)
    rows = [found.rows(use)["x"] for use in case.USES]
    assert len(np.unique(np.concatenate(rows), axis=0)) == sum(map(len, rows)) == 178


def test_goals_are_judged_by_what_was_measured() -> None:
    slow = {batch: Latency(p50_ms=1.0, speedup=1.5, low=1.4, high=1.6) for batch in ("1", "32")}
    costly = Quality(accuracy=0.9, drop=drop(0.011), kept={})
    assert [line[-1] for line in report.goals([row()])] == ["reached"] * 3
    assert [line[-1] for line in report.goals([row(latency=slow)])] == ["reached", "missed", "missed"]
    assert report.goals([row(quality=costly)])[0][-1] == "missed"
    moved = Quality(accuracy=0.9, drop=drop(0), kept={"neighbour kept": 0.95})
    assert report.goals([row(quality=moved)])[1] == ["a", "nearest neighbour kept >= 99%", "95.0%", "missed"]
    assert report.goals([row(kind="small", latency=slow)])[1][1] == "no slower than fp32, batch 1"
    assert report.goals([row(quality=None, problem="it broke")]) == [["a", "a model", "it broke", "missed"]]
    assert report.goals([row(maker="nncf")]) == []


def test_sentences_have_every_topic_and_repeat_none() -> None:
    found = sentences.sentences()
    assert len({text for text, _ in found}) == len(found) > 1500
    assert {topic for _, topic in found} == set(range(len(sentences.TOPICS)))
    assert sentences.first_sentence("Do this.  Then\nthat. And more.\n\nDetails.") == "Do this."
