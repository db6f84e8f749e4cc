"""Names of nodes: every node has one of its own, the same in every run, so that reports and recipes can point at it."""

from __future__ import annotations

from compiler.graph.onnx_libraries import onnx


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give each unnamed node of the main graph a name, and all but the first of equal names others; returns ``model``.

    A name follows from the operator and its first output, which passes keep more often than a node's position. The
    quantizer compares names, and would take all unnamed nodes for one.
    """
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            first = next((name for name in node.output if name), "")
            node.name = first_free(f"{node.name or node.op_type}/{first}", taken, mark=".")
            taken.add(node.name)
        seen.add(node.name)
    return model


def first_free(wanted: str, taken: set[str], *, mark: str = "_") -> str:
    """Return ``wanted``, or the first of ``wanted_2``, ``wanted_3``... that is not taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}{mark}{number}"
    return name
