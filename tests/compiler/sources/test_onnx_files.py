"""ONNX sources: the same bytes, or one file of many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.sources import Exported
from penstock.errors import CompileError, ConfigError
from tests.factories import onnx_model

Export = Callable[..., Exported]


@pytest.fixture
def model() -> onnx.ModelProto:
    product, weights = helper.make_node("MatMul", ["x", "w"], ["y"]), np.ones((4, 512), np.float32)
    return onnx_model([product], {"w": weights}, inputs={"x": ["batch", 4]}, outputs={"y": ["batch", 512]})


def test_a_file_keeps_its_bytes_and_so_its_digest(tmp_path: Path, model: onnx.ModelProto, exported: Export) -> None:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    made = exported("m.onnx", tmp_path)
    assert made.model.read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert made.facts["opset"] == 17
    assert (made.parity, made.files, made.passthrough) == ({}, (), False)


def test_external_data_becomes_one_file(tmp_path: Path, model: onnx.ModelProto, exported: Export) -> None:
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.bin", size_threshold=0)
    made = exported("m.onnx", tmp_path)
    assert "1 file(s) of external data brought in" in made.how
    assert [path.name for path in made.model.parent.iterdir()] == ["model.onnx"]


def test_the_files_of_a_directory_travel_along(tmp_path: Path, model: onnx.ModelProto, exported: Export) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "dir" / "tokenizer.json").write_text("{}")
    (tmp_path / "dir" / "notes.txt").write_text("stays")
    assert [path.name for path in exported("dir", tmp_path).files] == ["tokenizer.json"]
    assert exported("dir/model.onnx", tmp_path).files == ()


def test_an_opset_that_the_file_does_not_have(tmp_path: Path, model: onnx.ModelProto, exported: Export) -> None:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    exported("m.onnx", tmp_path, opset=17)
    with pytest.raises(ConfigError, match="21 given, but m.onnx is ONNX already, of opset 17"):
        exported("m.onnx", tmp_path, opset=21)


def test_a_model_that_onnxruntime_cannot_run(tmp_path: Path, model: onnx.ModelProto, exported: Export) -> None:
    model.graph.node[0].op_type = "Sparkle"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CompileError, match="Sparkle"):
        exported("m.onnx", tmp_path)
