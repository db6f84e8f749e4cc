"""The float graph made small and plain: the parent of every other candidate.

Decides what is done to every model before anything is quantized, pruned or cut: an opset with per-channel scales,
constants folded, operators merged where the result is ONNX's own operators again, dead parts gone, every node named.
What only one kind of processor can run is left to onnxruntime when it loads the file on the device.

Fusions of onnxruntime's transformer optimizer (Attention, SkipLayerNormalization, EmbedLayerNormalization) are not
made: a six-layer encoder of width 384 ran at 0.82 to 1.00 times its speed with them on a VNNI CPU (61 ms to 74 ms for
8 x 64 tokens), and at 0.79 to 0.90 times after dynamic quantization (29 ms to 37 ms). They would also put operators of
one runtime into the file. LayerNormalization and Gelu are fused at load, for nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from compiler.graph import equivalence, files, names, probe, rewrite, shapes
from compiler.graph.equivalence import Feeds
from compiler.graph.onnx_libraries import onnx, ort, session_options
from compiler.passes.job import MODEL_FILE, PassJob, PassResult
from compiler.passes.options import decode
from penstock.errors import CompileError, missing_extra

try:
    import onnxslim
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnxslim", "compile", "compiling models") from error

_PER_CHANNEL_OPSET = 13  # QuantizeLinear has an axis since then
_LIFTED_OPSET = 17  # what older models become: LayerNormalization exists since then
_TOLERANCE = 1e-4
"""Of the largest value of an output. Folding a BatchNormalization moves the last bits, and deep graphs amplify them."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        gemm_to_matmul: write Gemm as MatMul and Add: quantizers of weights pass over Gemm. Static INT8 wants Gemm.
        slim: let onnxslim simplify what onnxruntime leaves (shape arithmetic, repeated reshapes and transposes).
    """

    gemm_to_matmul: bool = False
    slim: bool = True


def run(job: PassJob) -> PassResult:
    """Write an equivalent float model.

    Raises:
        InvalidInput, ConfigError, CompileError: the model or the options are wrong, onnxruntime cannot run the model,
            or what came out answers differently, with the difference.
    """
    options = decode(job.options, Options, name="optimize")
    source = files.read(job.source, field="model")
    before = len(source.graph.node)
    reference = equivalence.Session(source)
    asked = equivalence.examples(source, job.calibration, seed=job.seed)
    job.progress(0.2, "onnxruntime")
    model = _by_onnxruntime(_prepared(source), keep_matmul=options.gemm_to_matmul)
    job.progress(0.5, "onnxslim")
    slimming = "off"
    if options.slim:
        model, slimming = _slimmed(model, reference, asked)
    if options.gemm_to_matmul:
        rewrite.gemm_to_matmul(names.named(model).graph, probe.typed(model))
    _finish(model)
    job.progress(0.8, "comparing")
    apart = equivalence.same(reference, equivalence.Session(model), asked, tolerance=_TOLERANCE, what="optimize")
    files.write(model, job.out / MODEL_FILE)
    after = len(model.graph.node)
    close = f"within {apart.relative:.1g} of the model's own" if apart.relative else "the same"
    return PassResult(
        model=MODEL_FILE,
        summary=f"{before} operators to {after}, answers {close}",
        facts={
            "nodes_before": before,
            "nodes_after": after,
            "opset": files.opset(model),
            "onnxslim": slimming,
            "largest_difference": float(f"{apart.relative:.1e}"),
        },
    )


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    # names and shapes of intermediate tensors left by an exporter may be stale, and trip quantizers
    del model.graph.value_info[:]
    rewrite.close(model)
    model = rewrite.lift_opset(model, _PER_CHANNEL_OPSET, target=_LIFTED_OPSET)
    for graph in rewrite.graphs(model.graph):
        for node in graph.node:
            node.ClearField("doc_string")  # torch writes the exporter's stack there, paths of its machine included
    return names.named(model)


def _by_onnxruntime(model: onnx.ModelProto, *, keep_matmul: bool) -> onnx.ModelProto:
    """Optimize at level "basic", which makes ONNX's own operators only; higher levels make what one processor or
    runtime has.
    """
    options = session_options(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    with tempfile.TemporaryDirectory(prefix="penstock-optimize-") as directory:
        source, target = Path(directory) / "in.onnx", Path(directory) / "out.onnx"
        files.write(model, source)
        options.optimized_model_filepath = str(target)
        if files.data_path(source).exists():
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "out.data")
        disabled = ["MatMulAddFusion"] if keep_matmul else []
        try:
            ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise CompileError(f"optimize: onnxruntime cannot optimize the model: {str(error)[:300]}") from error
        optimized = files.read(target, field="optimized model")
    _check_plain(model, optimized)
    rewrite.drop_unused_domains(optimized)
    return optimized


def _check_plain(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that no operator of another domain has come in."""
    domains = [
        {node.domain for graph in rewrite.graphs(model.graph) for node in graph.node if not rewrite.is_standard(node)}
        for model in (before, after)
    ]
    new = ", ".join(sorted(domains[1] - domains[0]))
    if new:
        raise CompileError(
            f"optimize: onnxruntime {ort.__version__} brought in operators of {new}, which only it can run; this is a "
            "defect of the pass: report it with the model"
        )


def _slimmed(
    model: onnx.ModelProto, reference: equivalence.Session, asked: Sequence[Feeds]
) -> tuple[onnx.ModelProto, str]:
    """Return what onnxslim makes of a model if that holds up, else the model as it was, and which of the two it is.

    onnxslim breaks on some graphs (28 of the 1,526 node cases of onnx that onnxruntime runs: it raises, or drops an
    input), so everything that it returns is checked.
    """
    try:
        slim = onnxslim.slim(rewrite.copied(model))
        if slim is None or _signature(slim) != _signature(model):
            return model, "declined: it changed the inputs or outputs"
        rewrite.close(slim)
        equivalence.same(reference, equivalence.Session(slim), asked, tolerance=_TOLERANCE, what="onnxslim")
    except Exception as error:  # whatever it raises: AttributeError, IndexError, UnboundLocalError have been seen
        return model, f"declined: {type(error).__name__}: {str(error)[:200]}"
    return slim, "applied"


def _signature(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


def _finish(model: onnx.ModelProto) -> None:
    rewrite.lift_constants(model.graph)
    rewrite.drop_dead(model.graph)
    rewrite.drop_unused_domains(model)
    names.named(model)
    described = shapes.inferred(model).graph.value_info
    rewrite.refill(model.graph.value_info, sorted(described, key=lambda value: value.name))
    if equivalence.weight_bytes(model) > files.MAX_MODEL_BYTES // 2:
        return  # the checker holds such a model only as a file, and whoever reads that checks it
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise CompileError(f"optimize: what came out is no valid ONNX model: {str(error)[:300]}") from error
