"""What changed between two artifacts, and what is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.artifact import differences, manifests
from penstock.artifact.differences import Line
from penstock.artifact.layout import Layout
from penstock.artifact.overview import overview_of
from penstock.cli.main import command
from penstock.signing import ed25519, trust
from tests.penstock.signed import DATA, make_layout, new_certificate


def changes(one: Layout, other: Layout) -> dict[str, Line]:
    lines = differences.compare(overview_of(one), overview_of(other))
    return {f"{line.section} {line.what}": line for line in lines if line.change != "same"}


def evaluation(accuracy: float, p50_ms: float) -> bytes:
    variant = {"quality": {"value": accuracy}, "size_bytes": 10, "speed": {"p50_ms": {"1": p50_ms}}}
    target = {"role": "edge", "target": "any", "metric": "accuracy", "variant": variant, "cascade": None}
    return json.dumps({"targets": [target], "cloud": {"quality": {"value": 0.99}}}).encode()


def test_an_artifact_is_the_same_as_itself_under_another_name_and_signed(tmp_path: Path) -> None:
    one, other = make_layout(tmp_path / "a"), make_layout(tmp_path / "b", tag="v2")
    trust.sign(other.root, ed25519.generate())
    assert changes(one, other) == {}


def test_other_weights_are_named_by_file(tmp_path: Path) -> None:
    found = changes(make_layout(tmp_path / "a", scale=1), make_layout(tmp_path / "b", scale=3))
    assert found["variant edge/any"].change == "changed"
    assert f"variant edge/any file {DATA}" in found
    assert "variant edge/any golden" in found
    assert "variant edge/any weights" not in found  # the graph is the same


def test_rungs_come_and_go(tmp_path: Path) -> None:
    found = changes(make_layout(tmp_path / "a"), make_layout(tmp_path / "b", roles=("edge", "site")))
    assert found["variant site/any"].change == "added"
    assert found["certificate site/any at 0.02 threshold"].change == "added"
    back = changes(make_layout(tmp_path / "c", roles=("edge", "site")), make_layout(tmp_path / "d"))
    assert back["variant site/any"].change == "removed"


def test_a_new_certificate_is_compared_with_the_newest_before(tmp_path: Path) -> None:
    one, other = make_layout(tmp_path / "a"), make_layout(tmp_path / "b")
    other.attach_certificate(new_certificate(other, serial=2, threshold=0.75))
    found = changes(one, other)
    assert list(found) == ["certificate edge/any at 0.02 threshold"]
    line = found["certificate edge/any at 0.02 threshold"]
    assert (line.before, line.after) == ("0.5", "0.75")


def test_figures_and_versions_are_compared(tmp_path: Path) -> None:
    one, other = make_layout(tmp_path / "a"), make_layout(tmp_path / "b")
    one.attach(manifests.EVALUATION, evaluation(0.9, 1.0), title="evaluation.json")
    other.attach(manifests.EVALUATION, evaluation(0.95, 0.5), title="evaluation.json")
    step = {"step": "export", "id": "sha256:1", "key": {"opset": 17}}
    other.attach(
        manifests.LOCK, json.dumps({"seed": 1, "made_by": {"onnx": "1"}, "steps": [step]}).encode(), title="lock"
    )
    found = changes(one, other)
    assert (found["evaluation edge/any accuracy"].before, found["evaluation edge/any accuracy"].after) == (
        "0.9",
        "0.95",
    )
    assert found["evaluation edge/any p50 ms x1"].after == "0.5"
    assert found["lock seed"].after == "1"
    assert found["lock made by onnx"].change == "added"
    assert found["lock step export opset"].after == "17"


@pytest.mark.parametrize("content", [b"not json", b"[]", b"null", b'{"targets": 3, "cloud": [], "steps": {}}'])
def test_documents_of_another_form_are_not_compared(tmp_path: Path, content: bytes) -> None:
    one, other = make_layout(tmp_path / "a"), make_layout(tmp_path / "b")
    other.attach(manifests.EVALUATION, content, title="evaluation.json")
    assert changes(one, other) == {}


def test_the_command_exits_like_diff(tmp_path: Path) -> None:
    one, other = make_layout(tmp_path / "a", scale=1), make_layout(tmp_path / "b", scale=2)
    run = CliRunner().invoke
    assert run(command, ["artifact", "diff", str(one.root), str(one.root)]).exit_code == 0
    shown = run(command, ["artifact", "diff", str(one.root), str(other.root)])
    assert shown.exit_code == 1
    assert "edge/any" in shown.output
    document = json.loads(run(command, ["artifact", "diff", str(one.root), str(other.root), "-o", "json"]).output)
    assert document["is_same"] is False
    assert {line["change"] for line in document["lines"]} == {"changed"}
