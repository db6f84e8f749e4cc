"""A TensorRT for RTX engine, built ahead of time: needs no GPU, no driver, and gives the same bytes each time.

The engine holds one program for all the compute capabilities asked for; the runtime on the device compiles kernels from
it when it is first loaded. Its types are those of the model: fp16 from an fp16 model, int8 from one with
QuantizeLinear/DequantizeLinear pairs. Whether a machine can run it is for ``penstock.runtime.engine_header`` to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from compiler.passes import engines
from compiler.passes.job import PassJob, PassResult
from compiler.passes.options import decode

RUNNER = Path(__file__).parents[1] / "runners" / "tensorrt_rtx_build.py"
_NAME = "tensorrt-rtx"
_WORDS = "TensorRT for RTX"

Capability = Annotated[str, msgspec.Meta(pattern=r"^\d{1,2}\.\d$")]


class Options(engines.Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set, besides what both TensorRT passes take.

    Attributes:
        compute_capabilities: graphics processors to build for. 7.5 (Turing) is left out by default: it has no float32
            matrix products there.
    """

    compute_capabilities: Annotated[tuple[Capability, ...], msgspec.Meta(min_length=1)] = (
        "8.0", "8.6", "8.9", "12.0", "12.1",
    )  # fmt: skip


def run(job: PassJob) -> PassResult:
    """Build ``job.source`` (fp32, fp16 or QDQ int8) into ``model.engine``, with ``engine.json`` beside it.

    Raises:
        ConfigError: options that are unknown or do not fit the model. InvalidInput: no such model.
        CompileError: the model cannot be built; the message names the node and the operator.
        MissingToolchain: the toolchain is not installed.
    """
    options = decode(job.options, Options, name=_NAME)
    model, profiles, runner_job = engines.prepare(job, options, words=_WORDS)
    wanted = sorted(set(options.compute_capabilities), key=lambda name: [int(part) for part in name.split(".")])
    facts = engines.build(
        _NAME, RUNNER, {**runner_job, "compute_capabilities": wanted}, job, timeout_s=options.timeout_s
    )
    flags = {"optimization_level": options.optimization_level}
    header = engines.make_header("tensorrt-rtx", job, model, profiles, facts, flags)
    summary = f"{_WORDS} {header.version}, {header.precision}, for compute capability {', '.join(wanted)}"
    return engines.finish(job, header, facts, summary=summary)
