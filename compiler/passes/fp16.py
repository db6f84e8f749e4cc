"""Half precision inside, float32 at inputs and outputs, with what half precision cannot hold left in float32.

The conversion is onnxruntime's; it has no rule for what overflows (beyond 65,504 a constant is silently cut off, and an
activation becomes infinite). Decided here: operators whose values leave that range on the examples stay in float32 and
are named, and a result that is further off than allowed is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np

from compiler.graph import equivalence, files, probe, rewrite
from compiler.graph.equivalence import Feeds
from compiler.graph.names import named
from compiler.graph.onnx_libraries import TensorProto, helper, numpy_helper, onnx
from compiler.passes import integers
from compiler.passes.job import MODEL_FILE, PassJob, PassResult
from compiler.passes.options import decode
from penstock import wording
from penstock.errors import CompileError, missing_extra

try:
    from onnxruntime.transformers import float16
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnxruntime", "compile", "compiling models") from error

_LARGEST = float(np.finfo(np.float16).max)
_NOTHING = "fp16: nothing was converted: the graph has no float32 operator that can be in float16"
_HEADROOM = 0.5
"""Of the largest number of half precision: examples never show the largest value that will come."""
_MASK_BELOW, _MASK = -1e9, -3e4
"""Constants below the first stand for minus infinity in front of a softmax. They become the second: exp of it is zero
in half precision too, and a score can be added to it without overflow."""
_BOUNDING = frozenset({"Clip", "Min", "Max"})
"""Operators whose constants only bound others: cut off at the largest number of half precision they still do."""
_CONVERTERS_CAST = re.compile(r"_cast_to_fp16_node$|^graph_input_cast\d+$")
_EXACT, _ROUNDED = "__penstock_exact", "__penstock_rounded"
_DRAWS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        float32_operators: kinds of operators to leave in float32, besides those that have no other form.
        max_error: largest difference to the float32 model that is accepted, as a share of the output's largest value.
    """

    float32_operators: tuple[str, ...] = ()
    max_error: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.02


Kept = dict[str, str]
"""Names of nodes to leave in float32, each with the reason."""


def run(job: PassJob) -> PassResult:
    """Write the model in half precision.

    Raises:
        InvalidInput, ConfigError, CompileError: the model or the options are wrong, nothing was converted, or the
            result is too far off or not finite; the message names the operators and the difference.
    """
    options = decode(job.options, Options, name="fp16")
    source = named(files.read(job.source, field="model"))
    rewrite.close(source)
    rewrite.lift_constants(source.graph)
    types = probe.typed(source)
    integers.check_kept(job, source, name="fp16")
    if not any(types.get(name) == TensorProto.FLOAT for node in source.graph.node for name in node.output):
        raise CompileError(_NOTHING)
    _check_operators(options, source)
    reference = equivalence.Session(source)
    asked = equivalence.examples(source, job.calibration, seed=job.seed)
    kept: Kept = dict.fromkeys(sorted(job.keep_float), "sent back to float")
    masks = _soften_masks(source.graph)
    job.progress(0.2, "ranges")
    _keep_overflows(source, types, asked, kept)
    job.progress(0.5, "converting")
    model = _converted(source, options, kept)
    half = _half_nodes(model)
    if not half:
        raise CompileError(_NOTHING)
    job.progress(0.8, "comparing")
    equivalence.same(reference, equivalence.Session(model), asked, tolerance=options.max_error, what="fp16")
    rounded = _rounded(source, types, frozenset(half))
    session = equivalence.Session(rounded)
    _check_finite(reference, session, asked, rounded, types)
    apart = equivalence.same(reference, session, asked, tolerance=options.max_error, what="fp16")
    files.write(model, job.out / MODEL_FILE)
    return _result(source, model, half, kept, masks, apart.relative)


def _check_operators(options: Options, model: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in model.graph.node}
    unknown = [kind for kind in options.float32_operators if kind not in kinds]
    if unknown:
        raise CompileError(
            f"fp16: float32_operators names {unknown[0]!r}, and the model has none; it has {', '.join(sorted(kinds))}"
        )


def _soften_masks(graph: onnx.GraphProto) -> list[str]:
    """Write minus infinity in masks as a finite number; return the names of these constants."""
    bounds = {name for node in graph.node if node.op_type in _BOUNDING for name in node.input}
    found = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in bounds:
            continue
        values = numpy_helper.to_array(tensor)
        is_mask = np.isfinite(values) & (values < _MASK_BELOW)
        if is_mask.any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(is_mask, np.float32(_MASK), values), tensor.name))
            found.append(tensor.name)
    return found


def _keep_overflows(model: onnx.ModelProto, types: Mapping[str, int], asked: Sequence[Feeds], kept: Kept) -> None:
    """Keep the producers of values that half precision cannot hold; what reads those is then given float32 as well."""
    limit = _HEADROOM * _LARGEST
    large = {t.name: size for t in model.graph.initializer if (size := _size(t)) > _LARGEST}
    floats = [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    sizes: dict[str, float] = {}
    opened = probe.Probe(model, floats)
    for feeds in asked:
        for name, value in opened.run(feeds).items():
            finite = np.abs(value[np.isfinite(value)])
            sizes[name] = max(sizes.get(name, 0.0), float(finite.max(initial=0)))
    given = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    sizes |= {name: max(float(np.abs(f[name]).max(initial=0)) for f in asked) for name in given if name in asked[0]}
    large |= {name: size for name, size in sizes.items() if size > limit}
    for node in model.graph.node:
        reads = [name for name in rewrite.reads(node) if name in sizes or node.op_type not in _BOUNDING]
        for name in (*node.output, *reads):
            if name in large:
                kept.setdefault(node.name, f"{name} reaches {large[name]:.3g}")
    for node in model.graph.node:
        if node.op_type in _DRAWS:
            kept.setdefault(node.name, "draws random numbers")


def _size(tensor: TensorProto) -> float:
    """Return the largest finite magnitude of a float32 constant; infinities in masks mean themselves and convert
    exactly.
    """
    if tensor.data_type != TensorProto.FLOAT:
        return 0.0
    values = np.abs(numpy_helper.to_array(tensor))
    return float(values[np.isfinite(values)].max(initial=0))


def _converted(source: onnx.ModelProto, options: Options, kept: Kept) -> onnx.ModelProto:
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *options.float32_operators]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers too small for half precision; the error is measured below
            model = float16.convert_float_to_float16(
                rewrite.copied(source),
                keep_io_types=True,
                disable_shape_infer=True,  # types are known from onnxruntime, for operators of all domains
                op_block_list=blocked,
                node_block_list=list(kept),
            )
    except Exception as error:  # the converter asserts, and raises what protobuf and numpy raise
        raise CompileError(f"fp16: the conversion failed: {type(error).__name__}: {str(error)[:300]}") from error
    _sort(model.graph)
    _join_float32(model.graph)
    rewrite.drop_dead(model.graph)
    del model.graph.value_info[:]
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads, as ONNX wants it: the converter appends its casts at the end."""
    made = {name for node in graph.node for name in node.output}
    ready: set[str] = set()
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready or name not in made for name in rewrite.reads(node)):
                ready.update(node.output)
                ordered.append(node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise CompileError("fp16: the conversion made a graph that runs in a circle; report the model")
        waiting = later
    rewrite.refill(graph.node, ordered)


def _join_float32(graph: onnx.GraphProto) -> None:
    """Hand float32 from one kept operator to the next directly.

    The converter casts down behind each and up before the next, so that a value kept in float32 because it is too large
    would still become infinite between the two.
    """
    producers = {name: node for node in graph.node for name in node.output}
    direct: dict[str, str] = {}
    for node in graph.node:
        if not _is_cast(node, TensorProto.FLOAT):
            continue
        before = producers.get(node.input[0])
        if before is not None and _CONVERTERS_CAST.search(before.name) and _is_cast(before, TensorProto.FLOAT16):
            direct[node.output[0]] = before.input[0]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in direct:
                node.input[index] = direct[name]
        if node.output and node.output[0] in direct and node.output[0] in outputs:
            node.op_type = "Identity"  # a cast to an output: same type on both sides now
            node.input[0] = direct[node.output[0]]
            del node.attribute[:]


def _is_cast(node: onnx.NodeProto, to: int) -> bool:
    return rewrite.is_standard(node, "Cast") and rewrite.attribute(node, "to") == to


def _half_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the operators that compute in half precision, the casts in and out not counted."""
    types = probe.typed(model)
    del model.graph.value_info[:]
    return [
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and any(types.get(name) == TensorProto.FLOAT16 for name in node.output)
    ]


def _rounded(source: onnx.ModelProto, types: Mapping[str, int], half: frozenset[str]) -> onnx.ModelProto:
    """Return the float32 graph with every result of a converted operator rounded to half precision.

    A CPU has few operators in half precision: onnxruntime computes the others in float32, and does not round between
    them, so that the converted model shows neither the error nor the overflow that it will have elsewhere.
    """
    model = rewrite.copied(source)
    graph = model.graph
    read = {name for node in graph.node if node.name in half for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in read and tensor.data_type == TensorProto.FLOAT:
            float16.convert_tensor_float_to_float16(tensor)
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in read and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            nodes += _rounding(value.name, value.name + _ROUNDED)
    given = {node.output[0].removesuffix(_ROUNDED) for node in nodes[1::2]}
    for node in graph.node:
        nodes.append(node)
        if node.name not in half:
            continue
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = name + _ROUNDED
        for index, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT:
                node.output[index] = name + _EXACT
                nodes += _rounding(name + _EXACT, name)
    rewrite.refill(graph.node, nodes)
    del graph.value_info[:]
    return model


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    between = f"{target}{_ROUNDED}/half"
    return [
        helper.make_node("Cast", [source], [between], name=between, to=TensorProto.FLOAT16),
        helper.make_node("Cast", [between], [target], name=target + _ROUNDED, to=TensorProto.FLOAT),
    ]


def _check_finite(
    reference: equivalence.Session,
    session: equivalence.Session,
    asked: Sequence[Feeds],
    rounded: onnx.ModelProto,
    types: Mapping[str, int],
) -> None:
    """Name the operators at which values that were finite stop to be so."""
    for feeds in asked:
        expected, found = reference.run(feeds), session.run(feeds)
        for name, value in expected.items():
            have = found.get(name)
            if (
                isinstance(value, np.ndarray)
                and value.dtype.kind == "f"
                and isinstance(have, np.ndarray)
                and have.shape == value.shape
                and np.any(np.isfinite(value) & ~np.isfinite(have))
            ):
                where = _first_infinite(rounded, types, feeds)
                raise CompileError(
                    f"fp16: output {name!r} overflows half precision, beginning at {where}; list its kind of operator "
                    "in float32_operators, or leave fp16 out"
                )


def _first_infinite(rounded: onnx.ModelProto, types: Mapping[str, int], feeds: Feeds) -> str:
    watched = [name for node in rounded.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    values = probe.Probe(rounded, watched).run(feeds)
    computing = [node for node in rounded.graph.node if node.op_type != "Cast"]
    makers = {name.removesuffix(_EXACT): node for node in computing for name in node.output}
    for name in watched:
        if not np.isfinite(values[name]).all() and name in makers:
            return f"{makers[name].op_type} {makers[name].name!r}"
    return "an input"


def _result(
    source: onnx.ModelProto, model: onnx.ModelProto, half: list[str], kept: Kept, masks: list[str], error: float
) -> PassResult:
    before, after = (equivalence.weight_bytes(each) for each in (source, model))
    return PassResult(
        model=MODEL_FILE,
        summary=(
            f"{len(half)} operators in half precision, {len(kept)} kept in float32 by name; weights "
            f"{wording.size(before)} to {wording.size(after)}; answers within {error:.1g} of the float32 ones"
        ),
        facts={
            "half_nodes": len(half),
            "kept_float32": dict(sorted(kept.items())),
            "masks": masks,
            "weight_bytes_before": before,
            "weight_bytes_after": after,
            "largest_difference": float(f"{error:.1e}"),
        },
    )
