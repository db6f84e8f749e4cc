"""What the INT8 passes share: how the float graph is read, and what is said of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.graph import coverage, files, probe
from compiler.graph.names import named
from compiler.graph.onnx_libraries import onnx
from compiler.passes.job import PassJob
from penstock.errors import CompileError

PER_CHANNEL_OPSET = 13  # QuantizeLinear has an axis since then


def source(job: PassJob, *, name: str) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return the job's float graph, its nodes named and its tensors' types known; and those types by tensor.

    Raises:
        InvalidInput, CompileError: it cannot be read or run, is quantized already, or is too old an opset.
    """
    model = named(files.read(job.source, field=name))
    opset = files.opset(model)
    if opset < PER_CHANNEL_OPSET:
        raise CompileError(
            f"{name}: the graph is of opset {opset}, and scales per channel need {PER_CHANNEL_OPSET}; run the optimize "
            "pass first, or export with a newer opset"
        )
    done = next((node for node in model.graph.node if node.op_type in ("QuantizeLinear", "MatMulInteger")), None)
    if done is not None:
        raise CompileError(f"{name}: the graph is quantized already (node {done.name!r}); give the float model")
    files.check_runnable(job.source, field=name)
    return model, probe.typed(model)


def check_kept(job: PassJob, model: onnx.ModelProto, *, name: str) -> None:
    """Check that every node that is to stay in float exists; otherwise keeping it would change nothing.

    Raises:
        CompileError: a node that is to stay in float does not exist, so that keeping it would change nothing.
    """
    unknown = sorted(job.keep_float - {node.name for node in model.graph.node})
    if unknown:
        raise CompileError(f"{name}: no node named {unknown[0]!r} to keep in float; take names from the sensitivities")


def facts(path: Path, job: PassJob, *, quantized: list[str]) -> dict[str, Any]:
    """Return the figures of a quantized file for the report.

    ``integer_nodes`` and ``float_nodes`` are None where this machine's kernels are not the target's: s8s8 convolutions
    are integers on arm64 and float here, and reporting either would be a guess.
    """
    weights = coverage.weight_bytes(path)
    run = coverage.executed(path) if job.target.runs_here else None
    return {
        "integer_weight_bytes": weights.integer,
        "float_weight_bytes": weights.floating,
        "integer_nodes": None if run is None else dict(run.integer),
        "float_nodes": None if run is None else dict(run.floating),
        "integer_other_nodes": None if run is None else dict(run.integer_others),
        "conversions": None if run is None else run.conversions,
        "quantized": quantized,
        "kept_float": sorted(job.keep_float),
    }
