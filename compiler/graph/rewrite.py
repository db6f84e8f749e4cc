"""Reading and changing graphs: subgraphs and what they capture, constants, dead parts, Gemm as MatMul and Add.

Every function changes the model it is given, in place, and leaves what it computes as it was. Nothing is run here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from compiler.graph.names import first_free
from compiler.graph.onnx_libraries import AttributeProto, TensorProto, helper, numpy_helper, onnx
from penstock.errors import CompileError
from penstock.wire.tensors import Array

STANDARD_DOMAINS = ("", "ai.onnx")
_LEAST_IR = 8
"""Older files list their weights among the inputs; from this version on nothing does."""
_WHOLE_NUMBERS = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64})


def is_standard(node: onnx.NodeProto, *kinds: str) -> bool:
    """Say whether a node is ONNX's own operator, of one of these kinds if any are given."""
    return node.domain in STANDARD_DOMAINS and (not kinds or node.op_type in kinds)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Return the bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Return the graph and every graph nested in it, outer ones first."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def bodies(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Return every graph of a model, and the body of every local function with the graphs nested in it."""
    for body in (model.graph, *model.functions):
        yield from graphs(body)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Return the names of the tensors a node needs, those that its subgraphs capture included."""
    yield from (name for name in node.input if name)
    for inner in subgraphs(node):
        yield from _captured(inner)


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    needed = [name for node in graph.node for name in reads(node)] + [value.name for value in graph.output]
    yield from (name for name in needed if name not in own)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return the value of an attribute, or ``default``."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    """Replace an attribute."""
    kept = [entry for entry in node.attribute if entry.name != name]
    refill(node.attribute, [*kept, helper.make_attribute(name, value)])


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a whole model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def copy_fields(source: Any, target: Any, *, besides: str) -> None:
    """Copy every field of a message that is set, but for the one named: the large one, which is filled otherwise."""
    for field, value in source.ListFields():
        if field.name == besides:
            continue
        if isinstance(value, str | int | bytes):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)


def refill(field: Any, values: Iterable[Any]) -> None:
    """Replace all messages of a repeated field."""
    kept = list(values)
    del field[:]
    field.extend(kept)


def constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the graph's own initializers by name. Run :func:`lift_constants` first to have Constant nodes among
    them."""
    return {tensor.name: tensor for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def uses(graph: onnx.GraphProto) -> Counter[str]:
    """Count how often nodes of the graph itself read each tensor."""
    return Counter(name for node in graph.node for name in node.input)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Call a tensor otherwise wherever a node of the graph itself makes or reads it."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def put_constant(graph: onnx.GraphProto, name: str, value: Array) -> str:
    """Add an initializer under a name that is still free, which is returned."""
    name = free_name(graph, name)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def free_name(graph: onnx.GraphProto, wanted: str) -> str:
    """Return ``wanted``, or the first of ``wanted_2``, ``wanted_3``... that no tensor has."""
    return first_free(wanted, names(graph))


def names(graph: onnx.GraphProto) -> set[str]:
    """Return every tensor name in a graph and its subgraphs."""
    found: set[str] = set()
    for part in graphs(graph):
        found.update(value.name for value in (*part.input, *part.output))
        found.update(tensor.name for tensor in part.initializer)
        found.update(name for node in part.node for name in (*node.input, *node.output))
    return found


def close(model: onnx.ModelProto) -> None:
    """Make initializers constants: take them off the inputs, where old exporters list them for callers to override."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    refill(model.graph.input, [value for value in model.graph.input if value.name not in fixed])
    model.ir_version = max(model.ir_version, _LEAST_IR)


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes with plain values into initializers, so that constants have one form."""
    kept = []
    for node in graph.node:
        value = _constant_value(node) if is_standard(node, "Constant") else None
        if value is None:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    refill(graph.node, kept)


def _constant_value(node: onnx.NodeProto) -> TensorProto | None:
    for entry in node.attribute:
        if entry.name == "value":
            return entry.t
        if entry.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(helper.get_attribute_value(entry), np.float32))
        if entry.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(helper.get_attribute_value(entry), np.int64))
    return None  # strings and sparse tensors stay nodes


def split_constants(graph: onnx.GraphProto) -> None:
    """Give every input of every node a constant of its own, so that one can be changed without the others."""
    known = constants(graph)
    seen: set[str] = {name for node in graph.node for inner in subgraphs(node) for name in _captured(inner)}
    seen.update(value.name for value in graph.output)
    taken = names(graph)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in known and name in seen:
                own = first_free(f"{name}_own", taken)
                taken.add(own)
                graph.initializer.add().CopyFrom(known[name])
                graph.initializer[-1].name = node.input[index] = own
            seen.add(name)


def merge_constants(graph: onnx.GraphProto) -> None:
    """Store equal constants once."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.STRING:
            content = numpy_helper.to_array(tensor).tobytes()
            key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
            same[tensor.name] = first.setdefault(key, tensor.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    drop_dead(graph)


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes of which nothing reaches an output, initializers nobody reads, and what is said of lost tensors."""
    needed = {value.name for value in graph.output}
    alive = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
            alive.append(node)
    if len(alive) < len(graph.node):
        refill(graph.node, alive[::-1])
    used = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(used) < len(graph.initializer):
        refill(graph.initializer, used)
    made = {name for node in graph.node for name in node.output}
    refill(graph.value_info, [value for value in graph.value_info if value.name in made])


def sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those that make what it reads, its subgraphs included; a sorted graph stays as it is."""
    made_by = {name: at for at, node in enumerate(graph.node) for name in node.output}
    needs = [[made_by[name] for name in reads(node) if name in made_by] for node in graph.node]
    placed: dict[int, None] = {}
    for start in range(len(needs)):
        waiting = [start]
        while waiting:
            at = waiting[-1]
            missing = [other for other in needs[at] if other not in placed and other != at]
            if at in placed or not missing:
                placed.setdefault(waiting.pop())
            else:
                waiting += reversed(missing)
    refill(graph.node, [graph.node[at] for at in placed])


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Keep only the opset entries of domains that some node uses; onnxruntime writes all it knows."""
    used = {_domain(node.domain) for body in bodies(model) for node in body.node} | {""}
    kept = [entry for entry in model.opset_import if _domain(entry.domain) in used]
    refill(model.opset_import, sorted(kept, key=lambda entry: entry.domain))


def _domain(name: str) -> str:
    return "" if name in STANDARD_DOMAINS else name


def require_domain(model: onnx.ModelProto, domain: str, version: int) -> None:
    """Declare an operator domain that a rewrite has brought in."""
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))


def lift_opset(model: onnx.ModelProto, least: int, *, target: int) -> onnx.ModelProto:
    """Return the model itself when its opset is ``least`` or newer, else a copy converted to ``target``.

    Raises:
        CompileError: onnx's converter cannot.
    """
    version = max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=0)
    if version >= least or version == 0:  # none: not one operator is ONNX's own
        return model
    try:
        return onnx.version_converter.convert_version(model, target)
    except Exception as error:  # the converter raises classes of its own and bare RuntimeError
        raise CompileError(
            f"the model uses opset {version}, and onnx cannot convert it to {target}: {str(error)[:300]}; "
            f"export it with opset {least} or newer"
        ) from error


def gemm_to_matmul(graph: onnx.GraphProto, types: dict[str, int]) -> int:
    """Write every Gemm, in subgraphs too, as MatMul and Add; the number rewritten.

    Quantizers of weights know MatMul and pass over Gemm without a word, and torch exports a 2-D Linear as Gemm.

    Args:
        types: element types of tensors by name, as far as they are known; a scaled Gemm of whole numbers is left alone.
    """
    count = 0
    for part in graphs(graph):
        nodes = []
        for node in part.node:
            rewritten = _split_gemm(part, node, types) if is_standard(node, "Gemm") else None
            nodes += [node] if rewritten is None else rewritten
            count += rewritten is not None
        refill(part.node, nodes)
    if count:
        drop_dead(graph)
    return count


def _split_gemm(graph: onnx.GraphProto, node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto] | None:
    """Write a Gemm as alpha * A' @ B' + beta * C; constants take their transposition and factor at once, others get
    nodes for them.
    """
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))  # type: ignore[arg-type]
    is_scaled = alpha != 1 or beta != 1
    if is_scaled and any(types.get(name) in _WHOLE_NUMBERS for name in node.input):
        return None
    made: list[onnx.NodeProto] = []

    def put(kind: str, inputs: list[str], what: str, **attributes: object) -> str:
        name = free_name(graph, f"{node.name}_{what}")
        made.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def adjusted(name: str, turned: bool, factor: float, role: str) -> str:
        known = constants(graph).get(name)
        if known is not None and (turned or factor != 1):
            value = numpy_helper.to_array(known)
            value = value.T if turned else value
            value = value if factor == 1 else (value * factor).astype(value.dtype)
            return put_constant(graph, f"{name}_{role}", value)
        if turned:
            name = put("Transpose", [name], f"{role}_turned", perm=[1, 0])
        if factor != 1:
            scale = put_constant(graph, f"{node.name}_{role}_factor", np.array(factor, _element_type(types, node)))
            name = put("Mul", [name, scale], f"{role}_scaled")
        return name

    left = adjusted(node.input[0], bool(attribute(node, "transA", 0)), 1.0, "a")
    right = adjusted(node.input[1], bool(attribute(node, "transB", 0)), alpha, "b")
    product = helper.make_node("MatMul", [left, right], [node.output[0]], name=node.name)
    if len(node.input) < 3 or not node.input[2]:
        return [*made, product]
    product.output[0] = free_name(graph, f"{node.name}_product")
    bias = adjusted(node.input[2], False, beta, "c")
    # it is the product that keeps the name: the one that is quantized, and that the gate speaks of
    total = helper.make_node("Add", [product.output[0], bias], [node.output[0]], name=f"{node.name}_bias")
    return [*made, product, total]


def _element_type(types: dict[str, int], node: onnx.NodeProto) -> np.dtype[np.generic]:
    known = [types[name] for name in node.input if name in types]
    dtype: np.dtype[np.generic] = helper.tensor_dtype_to_np_dtype(known[0] if known else TensorProto.FLOAT)
    return dtype
