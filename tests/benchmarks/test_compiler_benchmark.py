"""The compiler's benchmark runs from end to end on one small case, says what failed, and judges by the goals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compiler import bounded, case, measure, quantizers, report, sentences, tables
from benchmarks.compiler.cases import wine
from benchmarks.compiler.measure import Latency, Quality
from benchmarks.compiler.report import CaseResult, Row
from compiler.artifact.evaluation import Drop

ROOT = Path(__file__).resolve().parents[2]


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


def test_one_case_from_end_to_end(tmp_path: Path) -> None:
    """With one tool that cannot be installed, and a case that another run has measured before."""
    (tmp_path / "nncf").write_text("no directory")
    into = tmp_path / "results.json"
    report.save(measured("digits-mlp", [row(case="digits-mlp")]), into)
    options = ["--cases", "wine-mlp", "--seconds", "0.1", "--dir", str(tmp_path), "--into", str(into)]
    command = [sys.executable, "-m", "benchmarks.compiler", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    for maker in ("fp32", "penstock (", "ort static", "ort dynamic"):
        assert f"\n{maker}" in done.stdout
    saved = report.load(into).by_name
    assert list(saved) == ["digits-mlp", "wine-mlp"]
    rows = {row.maker: row for row in saved["wine-mlp"].rows}
    assert [maker for maker, found in rows.items() if found.quality is None] == ["nncf"]
    assert rows["nncf"].problem.startswith("not installed: ")
    assert rows["penstock"].promise.startswith("refused: 20 certifying examples are too few")


def measured(name: str, rows: list[Row]) -> CaseResult:
    figures = {"load_average": 1.0, "seconds": 1.0, "budget_s": 60.0, "took_s": 9.0}
    return CaseResult(case=name, date="2026-01-01", makers=("fp32", "penstock"), rows=rows, **figures)


def test_a_later_run_replaces_what_it_measured_again_and_keeps_the_rest(tmp_path: Path) -> None:
    into = tmp_path / "results.json"
    for name, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        report.save(measured(name, [row(case=name, seconds=seconds)]), into)
    assert [(case.case, case.rows[0].seconds) for case in report.load(into).cases] == [("a", 3.0), ("b", 2.0)]
    into.write_bytes(into.read_bytes().replace(b'"onnxruntime": "', b'"onnxruntime": "9'))
    with pytest.raises(SystemExit, match="other versions; name another file with --into"):
        report.save(measured("a", [row()]), into)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ((time.sleep, 100), "not done after 1 s"),
        ((os._exit, 3), r"its process ended without an answer \(status 3\)"),
        ((os.abort,), r"its process ended without an answer \(signal 6\)"),
        ((int, "x"), r"ValueError: invalid literal for int\(\) .*'x'"),
        ((quantizers.MAKERS.__getitem__, "no"), "KeyError"),
    ],
)
def test_what_hangs_breaks_or_dies_is_a_reason(call: tuple[Any, ...], reason: str) -> None:
    assert bounded.call(divmod, 7, 2, limit_s=60.0) == (3, 1)
    with pytest.raises(bounded.NotDone, match=reason):
        bounded.call(*call, limit_s=1.0 if call[0] is time.sleep else 60.0)


def test_what_a_call_started_ends_with_it(tmp_path: Path) -> None:
    number = tmp_path / "number"
    with pytest.raises(bounded.NotDone):
        bounded.call(subprocess.call, ["sh", "-c", f"echo $$ > {number}; exec sleep 100"], limit_s=5.0)
    state = Path("/proc", number.read_text().strip(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_documents_say_what_the_saved_results_say() -> None:
    """Their sections are written by ``python -m benchmarks.compiler.tables``, never typed."""
    for name in tables.DOCUMENTS:
        document = (ROOT / name).read_text()
        assert "<!-- python -m benchmarks.compiler.tables benchmarks/results/" in document
        assert document == tables.rewritten(document), f"{name} differs from the results that it names"


def test_a_table_says_why_a_cell_is_empty() -> None:
    fast = row(kind="real", what="A model", promise="refused: 20 are too few. Add some.")
    slow = row(kind="real", what="A model", maker="nncf", quality=None, problem="not | done\nafter 9 s")
    mine = row(kind="cnn", what="Our model", promise="keeps 97% at 2% harm")
    found = report.Results(
        machine={"cpus": 2, "cpu": "AMD"},
        versions={"onnxruntime": "1.0", "nncf": "nncf==3.0"},
        cases=[measured("a", [fast, slow]), measured("b", [mine])],
    )
    others = tables.others(found)
    assert "| A model | int8 | 1 s | 2.50x, 2.50x; 0.5 (0.0 to 2.0) | - | - | none | refused |" in others
    assert "- A model, NNCF: not / done after 9 s" in others
    assert "- A model, promise refused: 20 are too few. Add some." in others
    assert "| keeps 97% at 2% harm |" in tables.own(found)
    assert "others used it" not in others
    busy = report.Results(machine=found.machine, versions=found.versions, cases=[
        CaseResult(**{**{name: getattr(case, name) for name in case.__struct_fields__}, "load_average": 7.0})
        for case in found.cases
    ])  # fmt: skip
    assert "others used it as well: its load was 7.0 to 7.0 when cases began" in tables.others(busy).replace("\n", " ")


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
