"""The onnx engine on a GPU: the same answers as on the CPU first, then nothing about speed (that is a benchmark's)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.runtime import EngineOptions, load_engine

onnx = pytest.importorskip("onnx", reason="building the model needs onnx")


def _mlp(path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first = rng.standard_normal((64, 128), dtype=np.float32) / 8
    second = rng.standard_normal((128, 10), dtype=np.float32) / 11
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "second"], ["logits"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.usefixtures("cuda_runtime")
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_cuda_answers_as_the_cpu_does(tmp_path: Path, rows: int) -> None:
    model = _mlp(tmp_path / "mlp.onnx")
    x = np.random.default_rng(rows).standard_normal((rows, 64), dtype=np.float32)
    on_cpu = load_engine("onnx", model, EngineOptions(provider="cpu")).run({"x": x})["logits"]
    on_gpu = load_engine("onnx", model, EngineOptions(provider="cuda")).run({"x": x})["logits"]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-2, atol=1e-3)  # TF32 is on by default on a GPU
