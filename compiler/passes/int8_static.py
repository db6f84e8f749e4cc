"""Static INT8: a float graph into one with QuantizeLinear/DequantizeLinear pairs, ranges from examples, float scores.

Owns the ranges (``compiler.calibration``) and which operators are quantized (``int8_plan``); onnxruntime's quantizer
writes the pairs; ``compiler.recipe.targets`` decides the integer types. Refuses a result in which nothing was
quantized, because the quantizer itself passes over what it does not know without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
import numpy as np

from compiler.calibration import collect
from compiler.calibration.collect import Calibration, Settings
from compiler.calibration.ranges import Calibrator, Range
from compiler.graph import coverage, files, probe, rewrite, shapes
from compiler.graph.onnx_libraries import numpy_helper, onnx
from compiler.passes import int8_plan, int8_smooth, integers
from compiler.passes.int8_plan import Plan
from compiler.passes.job import MODEL_FILE, PassJob, PassResult
from compiler.passes.options import decode
from compiler.recipe.targets import IntegerTypes, integer_types
from penstock.errors import CalibrationError, CompileError, missing_extra

try:
    from onnxruntime import quantization as ortq
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnxruntime", "compile", "quantizing models") from error

_NAME = "int8"
_MIB = 1 << 20
_INFERRED_MARK = "onnx.infer"  # the quantizer's note to itself that shapes are known


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        calibrator: how ranges follow from examples.
        percentile: percent of each tensor's values that a percentile range holds.
        per_channel: a scale for each output channel of a weight instead of one for all.
        smooth: how much of the difference between channels of unlike size moves from the inputs of MatMul and Gemm into
            their weights (``int8_smooth``); 0: none.
        memory_mib: for intermediate tensors while ranges are found; less means more runs over the examples.
    """

    calibrator: Calibrator = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    smooth: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8
    memory_mib: Annotated[int, msgspec.Meta(ge=1)] = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What became of a job's model.

    Attributes:
        exact: the float graph whose values were rounded: its channels evened, its biases flat.
        model: the same with its pairs.
        found: the ranges.
        done: further facts.
    """

    exact: onnx.ModelProto
    model: onnx.ModelProto
    types: IntegerTypes
    options: Options
    plan: Plan
    found: Calibration
    done: Mapping[str, Any]


def run(job: PassJob) -> PassResult:
    """Write the job's model in static INT8; raises what :func:`quantized` does."""
    made = quantized(job)
    files.write(made.model, job.out / MODEL_FILE)
    job.progress(1.0, "written")
    return PassResult(model=MODEL_FILE, summary=summary(made), facts=facts(job, made))


def quantized(job: PassJob) -> Quantized:
    """Quantize the job's model, and write nothing.

    Raises:
        ConfigError: options. CalibrationError: no or unusable examples. InvalidInput, CompileError: the model cannot be
            read, run or quantized, or nothing in it can be.
    """
    options = decode(job.options, Options, name=_NAME)
    types = integer_types(job.target)
    if job.calibration is None:
        raise CalibrationError(f"{_NAME}: ranges of activations need examples; give data, or use int8-dynamic")
    model, elements = integers.source(job, name=_NAME)
    integers.check_kept(job, model, name=_NAME)
    if int8_plan.in_loops(model.graph):
        raise CompileError(
            f"{_NAME}: products with weights are inside a loop, and no examples show ranges of what is computed there; "
            "use int8-dynamic"
        )
    _write_sums_as_add(model.graph)
    _flatten_biases(model.graph)
    plan = _plan(model, types, job.keep_float)
    smoothed = 0
    if options.smooth > 0:
        # whatever stays in float: so that ranges are those of every job on this model
        whole = set(_plan(model, types, frozenset()).nodes)
        nodes = [node for node in model.graph.node if node.name in whole]
        feed = collect.Feed(model, job.calibration)
        smoothed = int8_smooth.smooth(model, nodes, feed.all, strength=options.smooth, memo=job.memo)
        elements = probe.typed(model)
    tensors = _tensors(model.graph, plan, types, elements)
    settings = Settings(
        calibrator=options.calibrator,
        percent=options.percentile,
        symmetric=types.symmetric,
        memory_bytes=options.memory_mib * _MIB,
    )
    found = _ranges(job, model, tensors, settings, options.smooth)
    written, cure = _quantized(model, plan, types, options, _tensor_data(found, elements))
    _read_exact(written.graph, set(plan.nodes))
    _keep_outputs_float(written.graph)
    _tidy(written)
    if coverage.weight_bytes_of(written.graph).integer == 0:
        raise CompileError(f"{_NAME}: the quantizer changed nothing; {_WHY_NOTHING}")
    return Quantized(
        exact=model,
        model=written,
        types=types,
        options=options,
        plan=plan,
        found=found,
        done={"cure": cure, "smoothed": smoothed},
    )


_WHY_NOTHING = (
    "int8 needs a convolution, Gemm or MatMul with constant weights that is not kept in float: export the model with "
    'its weights as constants, or set precisions = ["fp32"]'
)


def _write_sums_as_add(graph: onnx.GraphProto) -> None:
    """Write a Sum of two as an Add, which has an integer kernel; older exporters close their residual blocks with
    Sum."""
    for node in graph.node:
        if node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"


def _flatten_biases(graph: onnx.GraphProto) -> None:
    """Give constant biases of Gemm one value a column, ``beta`` times.

    As [1, N], [1] or a scalar they mean the same, and the quantizer fails where weights have a scale a column: it
    compares a row of the bias where it wants a number. A quantized Gemm of onnxruntime knows no ``beta``: it adds the
    bias once.
    """
    known = rewrite.constants(graph)
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or not {node.input[1], node.input[2]} <= set(known):
            continue
        columns = known[node.input[1]].dims[0 if rewrite.attribute(node, "transB", 0) else 1]
        bias = numpy_helper.to_array(known[node.input[2]])
        beta = rewrite.attribute(node, "beta", 1.0)
        if (bias.shape == (columns,) and beta == 1.0) or bias.size not in (1, columns):
            continue
        flat = np.broadcast_to(bias.reshape(-1) * bias.dtype.type(beta), (columns,))
        node.input[2] = rewrite.put_constant(graph, f"{node.input[2]}_flat", flat)
        rewrite.refill(node.attribute, [given for given in node.attribute if given.name != "beta"])


def _plan(model: onnx.ModelProto, types: IntegerTypes, keep_float: frozenset[str]) -> Plan:
    if types.symmetric:
        plan = int8_plan.tensorrt(model.graph, keep_float=keep_float, shapes=shapes.known(model))
    else:
        plan = int8_plan.cpu(model.graph, keep_float=keep_float)
    if plan.products == 0:
        raise CompileError(f"{_NAME}: there is nothing to quantize; {_WHY_NOTHING}")
    return plan


def _tensors(graph: onnx.GraphProto, plan: Plan, types: IntegerTypes, elements: Mapping[str, int]) -> list[str]:
    """Return the float tensors that a quantized node reads, or gives as integers, in the graph's order."""
    nodes, constants = set(plan.nodes), {tensor.name for tensor in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        if node.name in nodes:
            given = () if node.op_type in _float_results(types) else node.output
            for name in (*node.input, *given):
                if name not in constants and elements.get(name) in probe.FLOATS:
                    found[name] = None
    return list(found)


def _float_results(types: IntegerTypes) -> list[str]:
    """Return the operators whose results are not rounded. TensorRT decides by itself where its kernels round."""
    return sorted(int8_plan.PRODUCTS) if types.symmetric else list(int8_plan.DENSE)


def _ranges(
    job: PassJob, model: onnx.ModelProto, tensors: list[str], settings: Settings, strength: float
) -> Calibration:
    """Find the ranges of tensors, or remember them from a job with more operators in integers."""
    assert job.calibration is not None
    key = ("ranges", settings.calibrator, settings.percent, settings.symmetric, strength)
    known: Calibration | None = job.memo.get(key)
    missing = [name for name in tensors if known is None or name not in known.ranges]
    if missing:
        found = collect.collect(model, missing, job.calibration, settings, job.progress)
        known = found if known is None else replace(found, ranges={**known.ranges, **found.ranges})
        job.memo[key] = known
    assert known is not None
    return replace(known, ranges={name: known.ranges[name] for name in tensors})


def _tensor_data(found: Calibration, elements: Mapping[str, int]) -> dict[str, TensorData]:
    def of(name: str, values: Range) -> TensorData:
        dtype = np.float16 if elements[name] == onnx.TensorProto.FLOAT16 else np.float32
        return TensorData(lowest=np.array(values.low, dtype), highest=np.array(values.high, dtype))

    return {name: of(name, values) for name, values in found.ranges.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One way of asking onnxruntime's quantizer; ``cure`` says what was given up where the ways before it failed."""

    per_channel: bool
    adjusts_weights: bool = True
    cure: str = ""


def _attempts(options: Options) -> list[_Attempt]:
    unadjusted = "weights not adjusted to their biases"
    found = [
        _Attempt(per_channel=options.per_channel),
        _Attempt(per_channel=options.per_channel, adjusts_weights=False, cure=unadjusted),
    ]
    if options.per_channel:
        found.append(_Attempt(per_channel=False, adjusts_weights=False, cure=f"per tensor, {unadjusted}"))
    return found


def _quantized(
    model: onnx.ModelProto, plan: Plan, types: IntegerTypes, options: Options, ranges: dict[str, TensorData]
) -> tuple[onnx.ModelProto, str]:
    """Let onnxruntime write the pairs; return the model and what had to be given up for it, "" for nothing.

    Its adjustment of weights to biases fails on some graphs. It is an improvement of rounding, not a need: without it,
    and then with one scale a tensor, the same ranges are tried again before the model is given up.

    Raises:
        CompileError: every attempt failed; with the reason of the first.
    """
    reason = ""
    for attempt in _attempts(options):
        try:
            written = _written(rewrite.copied(model), plan, types, attempt, ranges)
            if attempt.cure:
                probe.session(written)  # a bias that the first attempt failed on may not be what kernels take either
            return written, attempt.cure
        except Exception as error:  # the quantizer raises whatever it meets: ValueError, RuntimeError, AssertionError
            reason = reason or f"{type(error).__name__}: {str(error)[:500]}"
    raise CompileError(
        f"{_NAME}: onnxruntime's quantizer failed, also per tensor and without adjusting weights to biases: {reason}"
    )


def _written(
    model: onnx.ModelProto, plan: Plan, types: IntegerTypes, attempt: _Attempt, ranges: dict[str, TensorData]
) -> onnx.ModelProto:
    add_infer_metadata(model)  # or the quantizer infers types again, and loses those behind other domains
    kinds = sorted({node.op_type for node in model.graph.node if node.name in set(plan.nodes)})
    quantizer = QDQQuantizer(
        model,
        attempt.per_channel,
        types.reduce_range,
        ortq.QuantType[types.weights],
        ortq.QuantType[types.activations],
        ranges,
        list(plan.nodes),
        [],
        kinds,
        {**_extra_options(types), "QDQDisableWeightAdjustForInt32Bias": not attempt.adjusts_weights},
    )
    quantizer.quantize_model()
    written: onnx.ModelProto = quantizer.model.model
    rewrite.sort(written.graph)  # the quantizer's own does not see what the branches of an If read
    return written


def _extra_options(types: IntegerTypes) -> dict[str, Any]:
    if not types.symmetric:
        return {"OpTypesToExcludeOutputQuantization": _float_results(types)}
    return {
        # TensorRT's parser takes no int32 bias between Q and DQ, and wants weights in float behind a pair of their own
        # and zero points of zero
        "QuantizeBias": False,
        "ActivationSymmetric": True,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": False,
        "ForceQuantizeNoInputCheck": True,
        "OpTypesToExcludeOutputQuantization": _float_results(types),
        "QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "ConvTranspose": 1},
    }


def _read_exact(graph: onnx.GraphProto, planned: set[str]) -> None:
    """Let operators that stay in float read what is float anyway, instead of its rounding.

    The quantizer puts every reader of a tensor behind its rounding: the residual sums of an encoder then add rounded
    values, which cost 10 dB of the 6-layer encoder's output and saved nothing. Not where an integer operator computed
    the tensor: its kernel has no float result, and asking for one would turn it into a float operator.
    """
    producers = rewrite.producers(graph)
    converts = ("QuantizeLinear", "DequantizeLinear")
    for dequantize in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantize = producers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        exact, rounded = quantize.input[0], dequantize.output[0]
        source = producers.get(exact)
        if source is not None and source.name in planned and source.op_type not in int8_plan.DENSE:
            continue
        for node in graph.node:
            if node.name not in planned and node.op_type not in converts:
                for index, name in enumerate(node.input):
                    if name == rounded:
                        node.input[index] = exact


def _keep_outputs_float(graph: onnx.GraphProto) -> None:
    """Take the rounding off the last tensors before a graph output (see ``int8_plan``: eight-bit scores tie).

    What is left in between is the tail of the plan: operators on one tensor that run in float. Not before a pooling
    one: an average of many roundings is fine already, and a convolution without it would run in float.
    """
    producers = rewrite.producers(graph)
    uses = rewrite.uses(graph)
    outputs = {output.name for output in graph.output}
    for output in graph.output:
        dequantize = producers.get(output.name)
        while dequantize is not None and _passes_on(dequantize) and uses[dequantize.output[0]] <= 1:
            dequantize = producers.get(dequantize.input[0])
        quantize = producers.get(dequantize.input[0]) if dequantize is not None else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or quantize is None:
            continue
        rounded, result, before = quantize.output[0], dequantize.output[0], quantize.input[0]
        read_inside = result in outputs and uses[result] > 0
        if before not in producers or uses[before] > 1 or uses[rounded] > 1 or uses[result] > 1 or read_inside:
            continue  # something else reads the rounded values
        graph.node.remove(dequantize)
        graph.node.remove(quantize)
        rewrite.rename(graph, before, result)


def _passes_on(node: onnx.NodeProto) -> bool:
    return int8_plan.is_tail(node) and node.op_type not in int8_plan.POOLING


def _tidy(model: onnx.ModelProto) -> None:
    """Drop scales and zero points that lost their node, notes on tensors that are gone, and the quantizer's own."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    rewrite.refill(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])
    del graph.value_info[:]
    rewrite.refill(model.metadata_props, [one for one in model.metadata_props if one.key != _INFERRED_MARK])


def summary(made: Quantized) -> str:
    """Say in a line how a model was quantized."""
    options, done = made.options, made.done
    how = f"{options.calibrator} ranges"
    if options.calibrator == "percentile":
        how = f"{options.percentile:g}th {how}"
    channels = done["cure"] or ("per channel" if options.per_channel else "per tensor")
    return f"int8 {made.types} {channels}, {how} from {made.found.rows} rows" + (
        f", {done['smoothed']} smoothed" if done["smoothed"] else ""
    )


def facts(job: PassJob, made: Quantized) -> dict[str, Any]:
    """Return the figures of the file that was written, for the report."""
    return {
        "types": str(made.types),
        "rows": made.found.rows,
        "calibrator": made.options.calibrator,
        "per_channel": made.options.per_channel,
        **made.done,
        "tensors": len(made.found.ranges),
        **integers.facts(job.out / MODEL_FILE, job, quantized=list(made.plan.nodes)),
    }
