"""What a model file may not do: reach outside its directory, promise bytes it does not have, grow without bound.

Model files come from other people. All of this is decided from the parsed message, before a byte of external data is
read, and before onnxruntime sees the file. Sizes of tensors stored inside the file are left to onnx's own checker.
Reads nothing of the disk but what ``stat`` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import AttributeProto, TensorProto, onnx
from penstock.errors import CompileError

MAX_SUBGRAPH_DEPTH = 16
MAX_FUNCTION_DEPTH = 64
MAX_NODES = 1_000_000
"""Counting each local function as often as it is called: a chain of functions that call each other twice doubles."""
MAX_MADE_ELEMENTS = 2**31
"""Elements of a tensor that a few bytes of graph ask for (ConstantOfShape and similar operators)."""
MAX_EXTERNAL_BYTES = 64 * 1024**3
MAX_SHARING = 4
"""Tensors may share bytes of an external file (tied weights), but not so often that a small file fills the memory."""

RUNTIME_DOMAINS = frozenset({
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training",
    "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc",
})  # fmt: skip
"""Operator domains that a plain onnxruntime brings along."""

_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.INT16: 16, TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8,
    TensorProto.UINT8: 8, TensorProto.UINT16: 16, TensorProto.UINT32: 32, TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.FLOAT4E2M1: 4,
}  # fmt: skip
_SHAPE_INPUT: Mapping[str, int] = {"ConstantOfShape": 0, "Expand": 1}
"""Operators that make a tensor of the shape given in that input."""
_SHAPE_ATTRIBUTE = frozenset({"RandomNormal", "RandomUniform"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalRange:
    """Where a tensor's bytes are: ``length`` bytes of ``path`` from ``offset`` on, found to be there."""

    path: Path
    offset: int
    length: int


def check(model: onnx.ModelProto, directory: Path) -> list[tuple[TensorProto, ExternalRange]]:
    """Refuse what a model may not do; return its external tensors with the bytes each stands for.

    Args:
        directory: of the model file; external data may be nowhere else.

    Raises:
        CompileError: what the file does, what is allowed.
    """
    _check_versions(model)
    bodies = list(_bodies(model))
    _check_functions(model)
    known = {"", "ai.onnx"} | RUNTIME_DOMAINS | {function.domain for function in model.functions}
    for body in bodies:
        for node in body.node:
            if node.domain not in known:
                raise CompileError(
                    f"operator {node.op_type} of the custom domain {node.domain!r}{_called(node)} is not part of ONNX, "
                    f"and a plain onnxruntime cannot run it; export the model without it (domains known here: "
                    f"{', '.join(sorted(RUNTIME_DOMAINS - {''}))})"
                )
        _check_made_tensors(body)
    external = [
        (tensor, external_range(tensor, directory))
        for body in bodies
        for tensor in _tensors(body)
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    _check_total([found for _, found in external])
    return external


def external_range(tensor: TensorProto, directory: Path) -> ExternalRange:
    """Return where an external tensor's bytes are, checked against its dimensions and against the file.

    Raises:
        CompileError: the location leaves ``directory`` or is no plain file, or the range is not in it.
    """
    what = f"external data of tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(entries.get("location", ""), directory, what)
    expected = _size_bytes(tensor, what)
    offset = _number(entries.get("offset", "0"), f"{what}: offset")
    length = _number(entries["length"], f"{what}: length") if "length" in entries else expected
    if length != expected:
        raise CompileError(f"{what}: {length} bytes, but its type and dimensions {list(tensor.dims)} need {expected}")
    have = path.stat().st_size
    if offset + length > have:
        raise CompileError(f"{what}: bytes {offset} to {offset + length} of {path.name}, which has only {have}")
    return ExternalRange(path=path, offset=offset, length=length)


def _inside(location: str, directory: Path, what: str) -> Path:
    """Return the plain file that a location names; separators of every system count, for files travel between them."""
    pure = PurePosixPath(location.replace("\\", "/"))
    if not location or "\0" in location or pure.is_absolute() or PureWindowsPath(location).drive or ".." in pure.parts:
        raise CompileError(
            f"{what}: location {location[:200]!r} is not inside the model's own directory; refused, because a model "
            "file could otherwise read any file of this machine. Keep external data beside the model"
        )
    path = directory
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            raise CompileError(f"{what}: {path} is a symbolic link; copy the file itself beside the model")
    if not path.is_file():
        raise CompileError(f"{what}: {path}: no such file; external data must lie beside the model")
    return path


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise CompileError(f"{what} {text[:40]!r} is not a number of bytes")
    return int(text)


def _size_bytes(tensor: TensorProto, what: str) -> int:
    if tensor.data_type not in _BITS or any(dim < 0 for dim in tensor.dims):
        raise CompileError(f"{what}: type {tensor.data_type} with dimensions {list(tensor.dims)} cannot be external")
    bits: int = math.prod(tensor.dims) * _BITS[tensor.data_type]
    return (bits + 7) // 8


def _check_total(ranges: list[ExternalRange]) -> None:
    total = sum(found.length for found in ranges)
    stored = sum(path.stat().st_size for path in {found.path for found in ranges})
    if total > min(MAX_EXTERNAL_BYTES, MAX_SHARING * stored):
        raise CompileError(
            f"external data: {total} bytes asked for, of files with {stored}; at most {MAX_SHARING} times their size "
            f"and {MAX_EXTERNAL_BYTES} bytes are read"
        )


def _check_versions(model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise CompileError(f"IR version {model.ir_version} is too new: up to {onnx.IR_VERSION} is supported here")
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise CompileError(
                f"opset {entry.version} is too new: up to {newest} is supported here; export with an older opset"
            )


def _check_made_tensors(body: onnx.GraphProto | onnx.FunctionProto) -> None:
    constants = dict(_small_constants(body))
    for node in body.node:
        shape: list[int] = []
        if node.op_type in _SHAPE_INPUT and len(node.input) > _SHAPE_INPUT[node.op_type]:
            shape = constants.get(node.input[_SHAPE_INPUT[node.op_type]], [])
        elif node.op_type in _SHAPE_ATTRIBUTE:
            shape = [dim for attribute in node.attribute if attribute.name == "shape" for dim in attribute.ints]
        if math.prod(abs(dim) for dim in shape) > MAX_MADE_ELEMENTS:
            raise CompileError(
                f"operator {node.op_type}{_called(node)} makes a tensor of {shape[:8]}, more than {MAX_MADE_ELEMENTS} "
                "elements; no device could hold it"
            )


def _small_constants(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[tuple[str, list[int]]]:
    """Return the constant vectors of int64 that can be a shape."""
    tensors = [(t.name, t) for t in getattr(body, "initializer", ())]
    tensors += [
        (node.output[0], attribute.t)
        for node in body.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.type == AttributeProto.TENSOR
    ]
    for name, tensor in tensors:
        is_small = tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1 and tensor.dims[0] <= 64
        if is_small and tensor.data_location != TensorProto.EXTERNAL:
            count = len(tensor.raw_data) // 8
            raw = [int.from_bytes(tensor.raw_data[8 * i : 8 * i + 8], "little", signed=True) for i in range(count)]
            yield name, raw or list(tensor.int64_data)


def _check_functions(model: onnx.ModelProto) -> None:
    """Refuse local functions that call themselves, or double without end: they are expanded where they are called."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    being_expanded: set[tuple[str, str]] = set()

    def expanded(body: onnx.GraphProto | onnx.FunctionProto) -> int:
        calls = ((node.domain, node.op_type) for part in _nested(body) for node in part.node)
        return sum(size(call) if call in functions else 1 for call in calls)

    def size(call: tuple[str, str]) -> int:
        if call not in sizes:
            if call in being_expanded or len(being_expanded) >= MAX_FUNCTION_DEPTH:
                raise CompileError(
                    f"local function {call[1]!r} calls itself, or functions call each other more than "
                    f"{MAX_FUNCTION_DEPTH} deep"
                )
            being_expanded.add(call)
            sizes[call] = expanded(functions[call])
            being_expanded.remove(call)
        return sizes[call]

    total = expanded(model.graph)
    if total > MAX_NODES:
        raise CompileError(f"the graph has {total} operators with its functions expanded; at most {MAX_NODES} are read")


def _bodies(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Return every graph and function body, subgraphs included."""
    yield from _nested(model.graph)
    for function in model.functions:
        yield from _nested(function)
    for training in model.training_info:
        yield from _nested(training.initialization)
        yield from _nested(training.algorithm)


def _nested(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    waiting = [(body, 0)]
    while waiting:
        current, depth = waiting.pop()
        if depth > MAX_SUBGRAPH_DEPTH:
            raise CompileError(f"subgraphs are nested more than {MAX_SUBGRAPH_DEPTH} deep")
        yield current
        waiting += [(graph, depth + 1) for node in current.node for graph in rewrite.subgraphs(node)]


def _tensors(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    yield from getattr(body, "initializer", ())
    for sparse in getattr(body, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in body.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.SPARSE_TENSOR:
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)


def _called(node: onnx.NodeProto) -> str:
    return f" (node {node.name!r})" if node.name else ""
