"""Whether the rows of a batch change each other's answers: then an answer depends on who else asked."""

from __future__ import annotations

from pathlib import Path

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import onnx

_ONE_SCALE_A_BATCH = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
"""Operators that round all rows by one range, found in these rows."""


def affect_each_other(path: Path) -> bool:
    """Say whether a model rounds each batch by its own range, as dynamic INT8 does.

    Confidence scores of such a model are noisy by the batch that a row came in: what was certified in batches of 64
    would not be what a device computes for one row. It is asked, certified and served one row at a time.

    Args:
        path: an ONNX file that was checked before; its external data are not read.
    """
    model = onnx.load(str(path), load_external_data=False)
    return any(node.op_type in _ONE_SCALE_A_BATCH for body in rewrite.bodies(model) for node in body.node)
