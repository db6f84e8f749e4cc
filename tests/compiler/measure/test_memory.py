"""What a model needs is measured in a process whose own peak counts, whatever started it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.measure import cost

WEIGHT_BYTES = 32 * 1024**2


def test_a_model_smaller_than_its_compiler_still_needs_what_it_holds(tmp_path: Path) -> None:
    rows = WEIGHT_BYTES // 16
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.ones((rows, 4), np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    held = np.ones(8 * WEIGHT_BYTES, np.uint8)  # this process's peak is above all that the measured one reaches
    found = cost.memory_bytes(tmp_path / "m.onnx", {"ids": np.zeros(1, np.int64)}, tmp_path)
    assert held.nbytes == 8 * WEIGHT_BYTES
    assert WEIGHT_BYTES * 0.8 < found < 5 * WEIGHT_BYTES
