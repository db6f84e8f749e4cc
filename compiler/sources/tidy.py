"""From what an exporter wrote to a model that we keep: called in a toolchain, tidied, checked, compared.

Tidying makes bytes repeat (exporters leave paths and stack traces in the file), drops names and shapes of intermediate
tensors (exporters leave stale ones, which trip the quantizers), and names the batch. Nothing that is computed changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.graph import files, rewrite
from compiler.graph.onnx_libraries import onnx
from compiler.progress import Progress
from compiler.sources import equivalence
from compiler.sources.exported import Exported
from penstock import toolchain
from penstock.artifact.blobs import disk_errors

BATCH = "batch"
_IMAGES = "pixel_values"
_SHARE_OF_EXPORT = 0.8  # of the progress; the rest is checking

Change = Callable[[onnx.ModelProto], onnx.ModelProto]
Assemble = Callable[[Path, Mapping[str, Any]], onnx.ModelProto]
"""Makes a model of what a runner wrote into a directory, by what the runner says of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of an export runner: ``settings`` are the runner's own, ``facts`` what is known of the model."""

    toolchain: str
    runner: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    tolerance: float


def one_graph(directory: Path, result: Mapping[str, Any]) -> onnx.ModelProto:
    """Read the model of a runner that wrote one graph."""
    return files.read(directory / result["model"], field="export")


def export(
    job: Job, out: Path, *, progress: Progress, assemble: Assemble = one_graph, after: Change | None = None
) -> Exported:
    """Run the job and keep what it made, if it is the same model.

    Args:
        assemble: makes the model of what the runner wrote.
        after: a change to the graph once it is found to be the original's.

    Raises:
        MissingToolchain, CompileError, StorageError.
    """
    scratch = out / ".raw"
    with disk_errors(f"writing {scratch}"):
        scratch.mkdir()
    try:
        runner = Path(__file__).parents[1] / "runners" / job.runner
        result = toolchain.call(
            job.toolchain,
            runner,
            {**job.settings, "out": str(scratch.absolute())},
            progress=lambda share, note: progress(_SHARE_OF_EXPORT * share, note),
        )
        model = assemble(scratch, result)
        cases = [equivalence.read_case(scratch / name) for name in result["cases"]]
        tidy(model, cases[0])
        target = out / "model.onnx"
        files.write(model, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(0.85, "comparing with the original")
    files.check_runnable(target, field="export")
    seen = equivalence.check(target, cases, tolerance=job.tolerance)
    if after is not None:
        files.write(after(model), target)
        files.check_runnable(target, field="export")
    progress(1.0, "exported")
    facts = {
        **job.facts,
        "exporter": result["exporter"],
        "toolchain": job.toolchain,
        "versions": toolchain.describe(job.toolchain),
        "opset": files.opset(model),
        "ir_version": model.ir_version,
    }
    return Exported(
        model=target, how=f"exported by {result['exporter']}, opset {facts['opset']}", facts=facts, parity=seen
    )


def tidy(model: onnx.ModelProto, exported: equivalence.Case) -> None:
    """Tidy a graph in place; see the module."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    for body in rewrite.bodies(model):
        is_graph = isinstance(body, onnx.GraphProto)  # inputs and outputs of a local function are names alone
        values = (*body.initializer, *body.input, *body.output) if is_graph else ()
        for named in (body, *body.node, *values):
            named.ClearField("doc_string")
            named.ClearField("metadata_props")
        del body.value_info[:]
    _name_dimensions(model.graph, exported)


def _name_dimensions(graph: onnx.GraphProto, exported: equivalence.Case) -> None:
    """Name the batch "batch" at every input and wherever its name comes back in an output.

    Images keep the one size that their model was made for: exporters leave it free, and the model then refuses others.
    """
    batch_names = set()
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            is_number = dim.dim_param.isdigit()  # a known size, written as a name
            if is_number or (value.name == _IMAGES and axis > 0 and dim.dim_param):
                dim.dim_value = exported.inputs[value.name].shape[axis]
        if dims and dims[0].dim_param:
            batch_names.add(dims[0].dim_param)
            dims[0].dim_param = BATCH
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in batch_names:
                dim.dim_param = BATCH
            elif dim.dim_param.isdigit():
                dim.dim_value = int(dim.dim_param)
