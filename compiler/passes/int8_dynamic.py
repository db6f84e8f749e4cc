"""Dynamic INT8: matrix products with 8-bit weights, and activations whose range is found while the model runs.

Needs no examples (with some, channels of unlike size are evened out first: ``int8_smooth``), and rounds each batch by
its own range: the better choice for encoders (measured with onnxruntime 1.32 on a CPU with VNNI, one thread: 6 layers
of 384, 64 tokens 2.2x of float32 at 37 dB, where static gives 2.0x at 26 dB; 6 layers of 768 2.85x). Convolutions are
never taken: in this form they run at a fifth of their float speed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec

from compiler.graph import coverage, files, rewrite
from compiler.graph.onnx_libraries import onnx
from compiler.passes import int8_plan, int8_smooth, integers
from compiler.passes.job import MODEL_FILE, PassJob, PassResult
from compiler.passes.options import decode
from compiler.recipe.targets import IntegerTypes, integer_types
from penstock.errors import CompileError, missing_extra

try:
    from onnxruntime import quantization as ortq
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnxruntime", "compile", "quantizing models") from error

_NAME = "int8-dynamic"
_PRODUCTS = ("MatMul", "Gemm", "Attention")
_TABLES = ("Gather", "EmbedLayerNormalization")
_REWRITTEN = "_MatMul"  # what the quantizer adds to the name of a Gemm that it writes as MatMul and Add


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        per_channel: a scale for each output channel of a weight instead of one for all.
        embeddings: also store embedding tables in 8 bits: half of a small encoder's file, at the same speed (a table is
            only looked up) and the cost of rounding its rows (32 dB instead of 37 for a 6-layer encoder).
        smooth: where there are examples, how much of the difference between channels moves into the weights; 0: none.
    """

    per_channel: bool = True
    embeddings: bool = True
    smooth: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8


def run(job: PassJob) -> PassResult:
    """Write the job's model in dynamic INT8.

    Raises:
        ConfigError: options. InvalidInput, CompileError: the model cannot be read, run or quantized, or nothing in it
            can be; a model of convolutions only is refused with the reason.
    """
    options = decode(job.options, Options, name=_NAME)
    types = integer_types(job.target)
    if types.symmetric:
        raise CompileError(f"{_NAME}: target {job.target.name} scales no activations at run time; use int8")
    model, _ = integers.source(job, name=_NAME)
    integers.check_kept(job, model, name=_NAME)
    nodes = _nodes(model.graph, options, job.keep_float)
    if not any(node.op_type in _PRODUCTS for node in nodes):
        raise CompileError(f"{_NAME}: {_why_nothing(model.graph)}")
    job.progress(0.0, f"{len(nodes)} operators")
    names = [node.name for node in nodes]
    # those without a name of their own cannot be pointed at, and stay in float
    inner = {node.name for node in int8_plan.in_loops(model.graph) if node.name and _is_plain(node)}
    inner -= {*names, *job.keep_float}
    names += sorted(inner)
    smoothed = 0
    if job.calibration is not None and options.smooth > 0:
        smoothed = int8_smooth.smooth(model, nodes, job.calibration, strength=options.smooth)
    quantized = _quantized(job, model, names, types, options, has_inner=bool(inner))
    if coverage.weight_bytes_of(quantized.graph).integer == 0:
        raise CompileError(f"{_NAME}: the quantizer changed nothing; {_why_nothing(model.graph)}")
    files.write(quantized, job.out / MODEL_FILE)
    job.progress(1.0, "written")
    return PassResult(
        model=MODEL_FILE,
        summary=f"int8 dynamic, {len(names)} operators, {'per channel' if options.per_channel else 'per tensor'}"
        + (f", {smoothed} smoothed" if smoothed else ""),
        facts={
            "types": f"dynamic {types.weights}{' reduced range' if types.reduce_range else ''}",
            "rows": 0,
            "calibrator": "none",
            "smoothed": smoothed,
            "per_channel": options.per_channel,
            **integers.facts(job.out / MODEL_FILE, job, quantized=names),
        },
    )


def _nodes(graph: onnx.GraphProto, options: Options, keep_float: frozenset[str]) -> list[onnx.NodeProto]:
    """Find products with constant weights, and lookups in constant float tables."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return [
        node
        for node in graph.node
        if node.name not in keep_float
        and (
            (node.op_type in int8_plan.DENSE and int8_plan.has_weights(node, constants) and _is_plain(node))
            or (node.op_type == "Attention" and node.domain == "com.microsoft" and node.input[1] in constants)
            or (options.embeddings and _is_table(node, constants))
        )
    ]


def _is_plain(node: onnx.NodeProto) -> bool:
    """Say whether the quantizer can write a Gemm as a MatMul; it passes over any other without a word."""
    values = {a.name: a.f if a.name in ("alpha", "beta") else float(a.i) for a in node.attribute}
    return values.get("alpha", 1) == 1 and values.get("beta", 1) == 1 and values.get("transA", 0) == 0


def _is_table(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == "EmbedLayerNormalization":
        return True
    table = constants.get(node.input[0]) if node.op_type == "Gather" else None
    return table is not None and table.data_type == onnx.TensorProto.FLOAT and len(table.dims) == 2


def _quantized(
    job: PassJob, model: onnx.ModelProto, names: list[str], types: IntegerTypes, options: Options, *, has_inner: bool
) -> onnx.ModelProto:
    path = job.out / MODEL_FILE
    try:
        with _quiet():
            ortq.quantize_dynamic(
                model,
                str(path),
                op_types_to_quantize=[*_PRODUCTS, *_TABLES],
                nodes_to_quantize=[*names, *(name + _REWRITTEN for name in names)],
                per_channel=options.per_channel,
                reduce_range=types.reduce_range,
                weight_type=ortq.QuantType.QInt8,
                extra_options={"EnableSubgraph": True} if has_inner else {},
            )
    except Exception as error:  # the quantizer raises whatever it meets: ValueError, RuntimeError, AssertionError
        raise CompileError(f"{_NAME}: quantization failed: {type(error).__name__}: {str(error)[:500]}") from error
    quantized = onnx.load(str(path))
    del quantized.graph.value_info[:]
    rewrite.sort(quantized.graph)  # the quantizer sorts without a look at what loops capture
    return quantized


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice on the root logger: the optimize pass has done what it advises."""
    root = logging.getLogger()
    root.addFilter(_no_advice)
    try:
        yield
    finally:
        root.removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()


def _why_nothing(graph: onnx.GraphProto) -> str:
    kinds = {node.op_type for node in graph.node}
    if kinds & {"Conv", "ConvTranspose"}:
        return "only convolutions have weights here, and those are slower so (0.2x of float32); use int8, with examples"
    return (
        "there is no Gemm or MatMul with constant weights that is not kept in float; export the model with its weights "
        'as constants, or set precisions = ["fp32"]'
    )
