"""Weights that are no numbers: what a training that overflowed leaves in a file."""

from __future__ import annotations

import numpy as np

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import TensorProto, onnx
from penstock.errors import CompileError

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})
_MARKS = frozenset({"Where", "Equal", "IsNaN"})
"""Operators that may be given NaN on purpose, as the mark of what is missing."""


def check(model: onnx.ModelProto) -> None:
    """Check that no weight is NaN. Infinities are left alone: masks are made of them.

    Raises:
        CompileError: the tensor, how much of it, and the operator that computes with it.
    """
    for body in rewrite.bodies(model):
        if not isinstance(body, onnx.GraphProto):
            continue
        readers = {name: node for node in body.node if node.op_type not in _MARKS for name in node.input}
        for tensor in body.initializer:
            reader = readers.get(tensor.name)
            if reader is None or tensor.data_type not in _FLOATS:
                continue
            broken = np.isnan(onnx.numpy_helper.to_array(tensor))
            if broken.any():
                place = [int(index) for index in np.argwhere(broken)[0]]
                raise CompileError(
                    f"weights hold NaN: {int(broken.sum())} of {broken.size} numbers of {tensor.name!r}, first at "
                    f"{place}, which {reader.op_type} computes with. Training or a conversion overflowed: export an "
                    "earlier checkpoint, or one in float32"
                )
