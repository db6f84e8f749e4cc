"""A TensorRT engine for the GPU of this machine, its kernels chosen by timing them there.

Two builds may choose differently, so the bytes repeat only with the same timing cache, which is kept beside the engine
and used again when the same step is repeated. Its types are those of the model, as for ``tensorrt_rtx``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from compiler.passes import engines
from compiler.passes.job import PassJob, PassResult
from compiler.passes.options import decode
from penstock.artifact.blobs import disk_errors
from penstock.errors import MissingToolchain
from penstock.toolchain import gpu

RUNNER = Path(__file__).parents[1] / "runners" / "tensorrt_build.py"
TIMING_CACHE_FILE = "timing.cache"
_NAME = "tensorrt"
_WORDS = "TensorRT"


class Options(engines.Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set, besides what both TensorRT passes take.

    Attributes:
        version_compatible: the engine also runs on newer versions of TensorRT; it is larger and may be slower.
    """

    version_compatible: bool = False


def run(job: PassJob) -> PassResult:
    """Build ``job.source`` (fp32, fp16 or QDQ int8) into ``model.engine``, with ``engine.json`` and ``timing.cache``.

    Raises:
        ConfigError: options that are unknown or do not fit the model. InvalidInput: no such model.
        CompileError: the model cannot be built; the message names the node and the operator.
        MissingToolchain: there is no GPU here, or the toolchain is not installed.
    """
    options = decode(job.options, Options, name=_NAME)
    if (reason := gpu.driver_problem()) is not None:
        raise MissingToolchain(
            f"pass {_NAME} builds on the GPU that runs the engine: {reason}. Target tensorrt-rtx is built without one"
        )
    model, profiles, runner_job = engines.prepare(job, options, words=_WORDS)
    cache = job.out / TIMING_CACHE_FILE
    kept = job.work / TIMING_CACHE_FILE if job.work is not None else None
    with disk_errors(f"writing {cache.name}"):
        if kept is not None and kept.is_file():
            shutil.copyfile(kept, cache)
    facts = engines.build(
        _NAME,
        RUNNER,
        {**runner_job, "timing_cache": cache, "version_compatible": options.version_compatible},
        job,
        timeout_s=options.timeout_s,
    )
    with disk_errors(f"writing {cache.name}"):
        if kept is not None:
            shutil.copyfile(cache, kept)
    flags = {"optimization_level": options.optimization_level, "gpu": facts["gpu"]}
    header = engines.make_header("tensorrt", job, model, profiles, facts, flags)
    header = msgspec.structs.replace(header, is_version_compatible=options.version_compatible)
    summary = f"{_WORDS} {header.version}, {header.precision}, for {facts['gpu']}"
    return engines.finish(job, header, facts, summary=summary)
