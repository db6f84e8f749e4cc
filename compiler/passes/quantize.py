"""Static INT8: a float graph into one with QuantizeLinear/DequantizeLinear pairs, per-channel weights, float scores.

Decides how; ``compiler.targets`` decides which integer types. Refuses a result in which nothing was quantized, because
the quantizer itself passes over what it does not know without a word.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compiler.calibrate import Feed
from compiler.evaluation import Quantization
from compiler.graph import files
from compiler.targets import IntegerTypes
from penstock.errors import CompileError, PenstockError, missing_extra
from penstock.tensors import Array

try:
    import onnx
    import onnxruntime as ort
    from onnxruntime import quantization as ortq
except ImportError as error:  # the libraries are behind an extra
    raise missing_extra("onnx and onnxruntime", "compile", "quantizing models") from error

_FLOAT_COMPUTE = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul", "LSTM", "GRU"}
)
_INTEGER_COMPUTE = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"}
)
_INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})


def quantize(
    source: Path, target: Path, *, types: IntegerTypes, inputs: Mapping[str, Array], max_batch: int
) -> Quantization:
    """Write the INT8 form of an optimized float model (``compiler.passes.optimize``) to ``target``.

    Args:
        inputs: calibration examples; every row is used, and used only for the ranges.

    Raises:
        CompileError: nothing could be quantized, or the quantizer failed. CalibrationError: it left rows unread.
    """
    feed = Feed(inputs, max_batch=max_batch)
    try:
        ortq.quantize_static(
            str(source),
            str(target),
            feed,
            quant_format=ortq.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=types.reduce_range,
            activation_type=ortq.QuantType[types.activations],
            weight_type=ortq.QuantType[types.weights],
            calibrate_method=ortq.CalibrationMethod.MinMax,
        )
    except PenstockError:
        raise
    except Exception as error:  # the quantizer raises whatever it meets: ValueError, RuntimeError, AssertionError
        raise CompileError(f"int8 quantization failed: {type(error).__name__}: {str(error)[:500]}") from error
    feed.check_complete()
    model = onnx.load(str(target))
    _keep_outputs_float(model.graph)
    files.write(model, target)
    integer_bytes, float_bytes = _weight_bytes(model.graph)
    if integer_bytes == 0:
        raise CompileError(
            "int8 quantization changed nothing: the graph has no convolution, Gemm or MatMul with constant weights; "
            'set precision = "fp32", or export the model with its weights as constants'
        )
    integer_nodes, float_nodes = _executed_nodes(target)
    return Quantization(
        types=str(types),
        rows=feed.rows_fed,
        integer_weight_bytes=integer_bytes,
        float_weight_bytes=float_bytes,
        integer_nodes=integer_nodes,
        float_nodes=float_nodes,
    )


def _keep_outputs_float(graph: onnx.GraphProto) -> None:
    """Take the last QuantizeLinear/DequantizeLinear pair off every graph output.

    Eight-bit logits tie: among confident rows the 256 steps leave a handful of distinct scores, and a threshold between
    them cannot be chosen. The kernels before them produce float just as fast.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        dequantize = producers.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize_node = producers.get(dequantize.input[0])
        if quantize_node is None or quantize_node.op_type != "QuantizeLinear":
            continue
        source = quantize_node.input[0]
        uses = [name for node in graph.node for name in node.input]
        if source not in producers or uses.count(quantize_node.output[0]) > 1 or output.name in uses:
            continue  # something else reads the rounded values
        graph.node.remove(dequantize)
        graph.node.remove(quantize_node)
        _rename(graph, source, output.name)
    _drop_unused(graph)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Scales and zero points that lost their node, and shapes of tensors that are gone."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]


def _weight_bytes(graph: onnx.GraphProto) -> tuple[int, int]:
    """Bytes of constants with a dimension of more than one element that are 8-bit integers, and that are float."""
    zero_points = {
        node.input[2]
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
    }
    scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    integer = floating = 0
    for tensor in graph.initializer:
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.data_type in _INTEGERS and tensor.name not in zero_points and len(tensor.dims) > 1:
            integer += count
        elif tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in scales:
            floating += 4 * count
    return integer, floating


def _executed_nodes(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Compute nodes in integers and in float, read from the graph that onnxruntime makes of the file on this CPU."""
    with tempfile.TemporaryDirectory(prefix="penstock-coverage-") as directory:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(directory) / "executed.onnx")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        executed = onnx.load(options.optimized_model_filepath)
    kinds = Counter(node.op_type for node in executed.graph.node)
    integer = {kind: count for kind, count in sorted(kinds.items()) if kind in _INTEGER_COMPUTE}
    floating = {kind: count for kind, count in sorted(kinds.items()) if kind in _FLOAT_COMPUTE}
    return integer, floating
