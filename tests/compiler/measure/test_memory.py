"""What a model needs is measured in a process whose own peak counts, whatever started it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from compiler.measure import cost
from tests.factories import onnx_model

WEIGHT_BYTES = 32 * 1024**2


def test_a_model_smaller_than_its_compiler_still_needs_what_it_holds(tmp_path: Path) -> None:
    rows = WEIGHT_BYTES // 16
    lookup, table = helper.make_node("Gather", ["table", "ids"], ["y"]), np.ones((rows, 4), np.float32)
    model = onnx_model([lookup], {"table": table}, inputs={"ids": ["n"]}, outputs={"y": ["n", 4]}, ints=("ids",))
    onnx.save(model, tmp_path / "m.onnx")
    held = np.ones(8 * WEIGHT_BYTES, np.uint8)  # this process's peak is above all that the measured one reaches
    found = cost.memory_bytes(tmp_path / "m.onnx", {"ids": np.zeros(1, np.int64)}, tmp_path)
    assert held.nbytes == 8 * WEIGHT_BYTES
    assert WEIGHT_BYTES * 0.8 < found < 5 * WEIGHT_BYTES
