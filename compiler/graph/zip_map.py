"""ZipMap, by which skl2onnx turns probabilities into a list of dictionaries: cut, since no tensor comes out of it."""

from __future__ import annotations

from compiler.graph.onnx_libraries import TensorProto, onnx

_DOMAIN = "ai.onnx.ml"


def cut(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Let each output that is made by a ZipMap be the probabilities that go into it, in place.

    Returns:
        The names of the classes, in the order of the columns; None where there is no ZipMap.
    """
    names: tuple[str, ...] | None = None
    for node in model.graph.node:
        if node.op_type != "ZipMap" or node.domain != _DOMAIN:
            continue
        found = [attribute for attribute in node.attribute if attribute.name.startswith("classlabels_")]
        names = tuple(
            value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            for attribute in found
            for value in (*attribute.strings, *attribute.ints)
        )
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        for output in model.graph.output:
            if output.name == node.output[0]:
                tensor = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", len(names)])
                output.type.CopyFrom(tensor)
    return names
