"""The float graph made ready for quantization: an opset with per-channel scales, known shapes, constants folded."""

from __future__ import annotations

from pathlib import Path

from compiler.graph import files
from penstock.errors import CompileError, missing_extra

try:
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as error:  # the libraries are behind an extra
    raise missing_extra("onnx and onnxruntime", "compile", "compiling models") from error

_PER_CHANNEL_OPSET = 13  # QuantizeLinear has an axis since then


def optimize(source: Path, target: Path, *, field: str) -> None:
    """Write an equivalent float model to ``target``.

    Raises:
        InvalidInput, CompileError: from :func:`compiler.graph.files.read`, or the graph cannot be prepared.
    """
    model = files.read(source, field=field)
    # names and shapes of intermediate tensors left by an exporter may be stale, and trip the quantizer
    del model.graph.value_info[:]
    try:
        if _opset(model) < _PER_CHANNEL_OPSET:
            model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
        # symbolic shape inference needs sympy and fails on dynamo-exported transformers; onnx's own is enough here
        quant_pre_process(model, str(target), skip_symbolic_shape=True)
    except Exception as error:  # both libraries raise bare RuntimeError, and the converter its own classes
        raise CompileError(f"{field}: {source.name}: cannot be prepared for int8: {str(error)[:500]}") from error


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
