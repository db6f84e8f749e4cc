"""What the two TensorRT passes share: accepted shapes, the precision that a model holds, and the compatibility header.

A TensorRT engine is built for ranges of shapes, so every axis of free size needs a least, a best and a most: the batch
axis from the options, others from the options by their name in the model, or from what calibration examples show.
Builds nothing itself: that is ``tensorrt_rtx`` and ``tensorrt``.
"""

from __future__ import annotations

import itertools
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from compiler.graph import files
from compiler.graph.onnx_libraries import TensorProto, onnx
from compiler.passes.job import Batches, PassJob, PassResult
from penstock import toolchain
from penstock.artifact.blobs import digest_of, digest_of_file, disk_errors
from penstock.errors import CompileError, ConfigError
from penstock.runtime import engine_header
from penstock.runtime.engine_header import EngineHeader, Format, Range

ENGINE_FILE = "model.engine"
_MAX_EXAMPLE_BATCHES = 64
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})

Size = Annotated[int, msgspec.Meta(ge=1)]
Sizes = tuple[Size, Size, Size]
"""Least, best, most."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set for either.

    Attributes:
        batch: least, best and most rows of a batch, where the model leaves that open.
        dims: least, best and largest size of other axes of free size, by their name in the model:
            ``{ sequence = [1, 64, 256] }``.
        optimization_level: how hard the builder tries, 0 to 5; higher takes longer.
        timeout_s: for the whole build.
    """

    batch: Sizes = (1, 8, 64)
    dims: dict[str, Sizes] = {}
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0


def prepare(job: PassJob, options: Options, *, words: str) -> tuple[onnx.ModelProto, dict[str, Range], dict[str, Any]]:
    """Return the model, the shapes to build for, and the part of the runner's job that both passes share.

    Raises:
        InvalidInput, CompileError: no such model, or not a valid one. ConfigError: an axis whose sizes nobody knows.
    """
    model = files.read(job.source, field="model")
    text = [value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.STRING]
    if text:
        raise CompileError(
            f"input {text[0]!r} holds text, which TensorRT has not; compile for a target that onnxruntime runs, or put "
            "what reads the text in front of the model"
        )
    profiles = ranges(model, options, seen_sizes(job.calibration))
    runner_job = {
        "source": job.source,
        "engine": job.out / ENGINE_FILE,
        "profiles": {name: (found.least, found.best, found.most) for name, found in profiles.items()},
        "optimization_level": options.optimization_level,
        "words": words,
    }
    return model, profiles, runner_job


def build(name: str, runner: Path, runner_job: Mapping[str, Any], job: PassJob, *, timeout_s: float) -> dict[str, Any]:
    """Run the builder in toolchain ``name`` and return its facts.

    Raises:
        CompileError: it cannot build the model; nothing is left behind. MissingToolchain.
    """
    try:
        return toolchain.call(name, runner, runner_job, progress=job.progress, timeout_s=timeout_s)
    except BaseException:
        (job.out / ENGINE_FILE).unlink(missing_ok=True)
        raise


def finish(job: PassJob, header: EngineHeader, facts: Mapping[str, Any], *, summary: str) -> PassResult:
    """Write the header beside the engine.

    Raises:
        CompileError: what was built is no engine. StorageError: the disk is full.
    """
    if "MALFORMED_ENGINE" in facts["diagnostics"]:
        raise CompileError(
            f"{header.format}: the runtime cannot read the engine that was just built from {job.source.name}"
        )
    header = msgspec.structs.replace(header, cache_key=engine_header.make_key(header))
    with disk_errors(f"writing {engine_header.FILE}"):
        (job.out / engine_header.FILE).write_bytes(engine_header.encode(header))
    return PassResult(
        model=ENGINE_FILE,
        summary=summary,
        facts={
            "header": msgspec.to_builtins(header),
            "layers": facts["layers"],
            "inputs": facts["inputs"],
            "outputs": facts["outputs"],
            "size_bytes": (job.out / ENGINE_FILE).stat().st_size,
        },
    )


def make_header(
    kind: Format, job: PassJob, model: onnx.ModelProto, profiles: dict[str, Range], facts: Mapping[str, Any],
    flags: Mapping[str, str | int | bool],
) -> EngineHeader:  # fmt: skip
    """Return the header of the engine in ``job.out``, still without its key. Engines run on the system that built
    them."""
    return EngineHeader(
        format=kind,
        onnx_digest=source_digest(job.source),
        engine_digest=digest_of_file(job.out / ENGINE_FILE),
        version=facts["version"],
        compute_capabilities=tuple(facts["compute_capabilities"]),
        precision=precision_of(model),
        profiles=profiles,
        os=platform.system().lower(),
        architecture=platform.machine(),
        flags={**flags, "builder_flags": " ".join(facts["flags"])},
        driver=facts.get("driver", ""),
    )


def source_digest(path: Path) -> str:
    """Return the digest of the model file; where weights lie beside it, of all the files together."""
    beside = files.data_files(path, field="model")
    digests = [digest_of_file(file) for file in (path, *beside)]
    return digests[0] if len(digests) == 1 else digest_of("\n".join(digests).encode())


def precision_of(model: onnx.ModelProto) -> Literal["fp32", "fp16", "int8"]:
    """Return the number type that the model's operators compute in; engines keep to it."""
    if any(node.op_type in _QUANTIZED for node in model.graph.node):
        return "int8"
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        return "fp16"
    return "fp32"


def ranges(model: onnx.ModelProto, options: Options, seen: Mapping[str, Mapping[int, Sizes]]) -> dict[str, Range]:
    """Return the accepted shapes of every input.

    Args:
        seen: least, best and most of each axis in examples, by input and axis.

    Raises:
        ConfigError: an axis of free size of which nothing is known, or sizes that are out of order.
        CompileError: not even the number of axes is known.
    """
    _check_order("batch", options.batch)
    for name, sizes in options.dims.items():
        _check_order(f"dims.{name}", sizes)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    known = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim}
    for name in options.dims:
        if name not in known:
            free = ", ".join(sorted(known - {""})) or "none"
            raise ConfigError(f"dims.{name}: the model has no axis of that name; its axes of free size: {free}")
    found = {}
    for value in inputs:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise CompileError(f"input {value.name!r} has no shape in the model; export it with the number of its axes")
        axes = [_sizes(value, axis, options, seen.get(value.name, {})) for axis in range(len(kind.shape.dim))]
        least, best, most = zip(*axes, strict=True) if axes else ((), (), ())
        found[value.name] = Range(least=tuple(least), best=tuple(best), most=tuple(most))
    return found


def seen_sizes(calibration: Batches | None) -> dict[str, dict[int, Sizes]]:
    """Return the least, the most frequent and the most of each axis but the batch, over the first batches of examples.

    Of sizes that are as frequent the largest is best: an engine that is tuned for it loses least on the others.
    """
    counts: dict[str, dict[int, Counter[int]]] = {}
    for batch in itertools.islice(calibration() if calibration else (), _MAX_EXAMPLE_BATCHES):
        for name, array in batch.items():
            axes = counts.setdefault(name, {})
            for axis, size in enumerate(array.shape[1:], start=1):
                axes.setdefault(axis, Counter())[size] += 1
    return {
        name: {
            axis: (min(seen), max(seen, key=lambda size: (seen[size], size)), max(seen)) for axis, seen in axes.items()
        }
        for name, axes in counts.items()
    }


def _sizes(value: onnx.ValueInfoProto, axis: int, options: Options, seen: Mapping[int, Sizes]) -> Sizes:
    dim = value.type.tensor_type.shape.dim[axis]
    if dim.HasField("dim_value"):
        return (dim.dim_value, dim.dim_value, dim.dim_value)
    if dim.dim_param in options.dims:
        return options.dims[dim.dim_param]
    if axis == 0:
        return options.batch
    if axis in seen:
        return seen[axis]
    name = dim.dim_param or f"axis{axis}"
    how = (
        f"set dims = {{ {name} = [least, best, most] }}"
        if dim.dim_param
        else "give the axis a name when the model is exported, or a size"
    )
    raise ConfigError(
        f"input {value.name!r}: axis {axis} ({name}) has a free size, and no examples say which sizes come; {how}"
    )


def _check_order(name: str, sizes: Sizes) -> None:
    if list(sizes) != sorted(sizes):
        raise ConfigError(f"{name}: {list(sizes)} is not in order; expected [least, best, most]")
