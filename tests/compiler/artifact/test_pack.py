"""Packing: golden vectors, digests that depend on what they should, and a destination that is all or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.artifact import pack
from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.errors import CompileError, Conflict, StorageError
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import TensorSpec


def fp32(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def test_golden_outputs_are_the_variants_own(workspace: Path) -> None:
    drafted = student_draft(workspace, np.ones((3, 4), np.float32))
    assert drafted.golden is not None
    vectors = golden.decode(drafted.golden)
    engine = load_engine("onnx", drafted.weights, EngineOptions())
    golden.check(vectors, engine.run(vectors.inputs), tolerance=0)
    assert drafted.spec.golden_tolerance == pack._tolerance(vectors, "fp32")


def test_rows_that_a_device_could_not_hold_are_left_out_of_the_golden_vectors(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    whole = student_draft(workspace, x).golden
    assert whole is not None
    monkeypatch.setattr(golden, "MAX_BYTES", len(whole) // 2)
    less = student_draft(workspace, x).golden
    assert less is not None
    assert len(less) <= golden.MAX_BYTES
    np.testing.assert_array_equal(golden.decode(less).inputs["x"], x[:4])
    monkeypatch.setattr(golden, "MAX_BYTES", 10)
    with pytest.raises(CompileError, match=r"one row with its outputs is \d+ bytes, and devices replay at most 10"):
        student_draft(workspace, x)


def test_golden_tolerance_grows_with_the_outputs_and_with_coarser_arithmetic() -> None:
    outputs = Golden(inputs={}, outputs={"logits": np.array([[-50.0, 20.0]])})
    assert pack._tolerance(outputs, "fp32") == 0.05
    assert pack._tolerance(outputs, "int8") == pytest.approx(0.781)
    assert pack._tolerance(Golden(inputs={}, outputs={"ids": np.array([7])}), "int8") == 1e-3


def test_outputs_that_are_not_finite_are_never_golden(workspace: Path) -> None:
    with pytest.raises(CompileError, match=r"not finite for golden inputs; set model.input_range"):
        student_draft(workspace, np.full((1, 4), np.inf, np.float32))


def student_draft(workspace: Path, x: NDArray[np.float32]) -> VariantDraft:
    path = workspace / "student.onnx"
    onnx = load_engine("onnx", path, EngineOptions())
    spec = VariantSpec(
        model="blobs",
        role="edge",
        engine="onnx",
        target="any",
        provider="cpu",
        precision="fp32",
        inputs=onnx.inputs,
        outputs=onnx.outputs,
        score_output="logits",
    )
    return pack.draft(spec, path, onnx, [{"x": x}], files={})


# --- the destination


def test_absent_and_empty_destinations_are_fine(tmp_path: Path) -> None:
    pack.check_destination(tmp_path / "absent" / "deep")
    (tmp_path / "empty").mkdir()
    pack.check_destination(tmp_path / "empty")


def test_a_directory_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Conflict, match=r"holds thesis.tex; choose another directory"):
        pack.check_destination(tmp_path)


def test_an_image_layout_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    Layout.create(tmp_path)  # such as skopeo writes, without our annotation
    with pytest.raises(Conflict, match="no artifact of ours"):
        pack.check_destination(tmp_path)


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError):
        pack.check_destination(tmp_path / "out")


def test_a_parent_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="creating a directory beside"), pack.workspace(tmp_path / "file" / "out"):
        pass


def test_the_workspace_is_gone_whatever_happens(tmp_path: Path) -> None:
    workspace = pack.workspace(tmp_path / "out")
    (workspace.__enter__() / "half").write_text("written")
    assert not workspace.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # not swallowed either
    assert list(tmp_path.iterdir()) == []


def test_publishing_replaces_the_whole_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    with pack.workspace(out) as scratch:
        (scratch / "built").mkdir()
        (scratch / "built" / "new").write_text("")
        pack.publish(scratch / "built", out, scratch)
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_finishes_a_copy_sees_it_before_anyone_else(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    with pack.workspace(out) as scratch:
        (scratch / "built").mkdir()
        (scratch / "built" / "new").write_text("")
        pack.publish(scratch / "built", out, scratch, finish=lambda copy: seen.append((copy / "new", out.exists())))
    assert [(path.name, was_there) for path, was_there in seen] == [("new", False)]


def test_what_was_there_stays_when_publishing_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    with pytest.raises(StorageError, match="publishing"), pack.workspace(out) as scratch:
        pack.publish(scratch / "never built", out, scratch)
    assert [path.name for path in out.iterdir()] == ["old"]
