"""One contract suite for every engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from penstock.errors import ArtifactError, Internal, InvalidInput
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


def _onnx_identity(path: Path) -> Path:
    onnx = pytest.importorskip("onnx", reason="writing a model needs onnx")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(params=["onnx", "echo"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "onnx":
        return load_engine("onnx", _onnx_identity(tmp_path / "m.onnx"), EngineOptions())
    (tmp_path / "m.json").write_bytes(msgspec.json.encode([X]))
    return load_engine("echo", tmp_path / "m.json", EngineOptions())


def test_specs_and_rows(engine: Engine) -> None:
    assert engine.inputs == (X,)
    batch = np.arange(8, dtype="f4").reshape(2, 4)
    (result,) = engine.run({"x": batch}).values()
    np.testing.assert_array_equal(result, batch)


def test_only_the_wanted_outputs(engine: Engine) -> None:
    name = engine.outputs[0].name
    assert list(engine.run({"x": np.zeros((1, 4), "f4")}, [name])) == [name]


def test_close_twice_is_fine(engine: Engine) -> None:
    engine.close()
    engine.close()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for name in ("onnx", "echo"):
        (tmp_path / "bad").write_bytes(b"not a model")
        with pytest.raises(ArtifactError, match="bad"):
            load_engine(name, tmp_path / "bad", EngineOptions())


def test_onnx_refuses_inputs_that_the_model_refuses(tmp_path: Path) -> None:
    engine = load_engine("onnx", _onnx_identity(tmp_path / "m.onnx"), EngineOptions())
    with pytest.raises(InvalidInput):
        engine.run({"x": np.zeros((1, 5), "f4")})
    engine.close()
    with pytest.raises(Internal, match="closed"):
        engine.run({"x": np.zeros((1, 4), "f4")})


def test_unknown_engine_and_provider(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"unknown engine 'tflite'.*onnx"):
        load_engine("tflite", tmp_path, EngineOptions())
    with pytest.raises(InvalidInput, match="unknown 'npu'"):
        load_engine("onnx", _onnx_identity(tmp_path / "m.onnx"), EngineOptions(provider="npu"))
