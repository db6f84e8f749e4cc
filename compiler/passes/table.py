"""Every pass: what it does, which precision it gives, for which targets, and the toolchain it needs.

One row a pass; adding one means a module and a row. Importing this imports no pass.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.passes.job import PassJob, PassResult
from compiler.passes.options import decode
from compiler.recipe.targets import CUDA, GENAI_CPU, GENAI_CUDA, TENSORRT, TENSORRT_RTX, Precision
from penstock.errors import ConfigError
from penstock.process.config import nearest
from penstock.process.machine import ANY, ARM64, COREML, OPENVINO, QNN, X86, X86_VNNI, XNNPACK

_CPU = (X86_VNNI, X86, ARM64)
_INTEGERS = (*_CPU, OPENVINO, QNN, XNNPACK, TENSORRT, TENSORRT_RTX)
_HALVES = (CUDA, OPENVINO, QNN, COREML, TENSORRT, TENSORRT_RTX)
_RUNTIME = (*_CPU, ANY, CUDA, OPENVINO, QNN, COREML, XNNPACK, TENSORRT, TENSORRT_RTX)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInfo:
    """One pass: ``module`` has ``run(job) -> PassResult``, and ``Options`` for what a recipe sets.

    Attributes:
        precision: "" where the pass does not change it.
        set_by: what to write instead, where ``passes.NAME`` in a recipe does not set the pass; "" where it does.
    """

    name: str
    what: str
    module: str
    precision: Precision | str = ""
    targets: tuple[str, ...] = _RUNTIME
    toolchain: str = ""
    set_by: str = ""

    def load(self) -> Callable[[PassJob], PassResult]:
        """Import the pass and return its ``run``.

        Raises:
            MissingExtra: a library that the pass imports is not installed.
        """
        run: Callable[[PassJob], PassResult] = importlib.import_module(self.module).run
        return run

    def check(self, options: Mapping[str, Any]) -> None:
        """Check the options that a recipe sets for the pass.

        Raises:
            ConfigError: an option that the pass does not have, or a value that it cannot take.
            MissingExtra: a library that the pass imports is not installed.
        """
        if self.set_by:
            raise ConfigError(f"passes: {self.name} has no options here; {self.set_by}")
        decode(options, importlib.import_module(self.module).Options, name=self.name)


PASSES: Mapping[str, PassInfo] = {
    row.name: row
    for row in (
        PassInfo(
            name="optimize",
            what="fold constants, fuse and simplify; the float parent of every other candidate",
            module="compiler.passes.optimize",
            precision="fp32",
        ),
        PassInfo(
            name="prune",
            what="remove small weights (magnitude) or whole channels (structured)",
            module="compiler.passes.prune",
            set_by="set prune = { share = 0.5 } instead",
        ),
        PassInfo(
            name="int8",
            what="static INT8 (QDQ): activations and weights, ranges from examples",
            module="compiler.passes.int8_static",
            precision="int8",
            targets=_INTEGERS,
        ),
        PassInfo(
            name="int8-qat",
            what="static INT8 of a student, fine-tuned with its rounding in the loop (quantization-aware training)",
            module="compiler.passes.int8_qat",
            precision="int8",
            targets=(*_CPU, OPENVINO, QNN, XNNPACK),
            toolchain="torch",
            set_by='set distill.quantization_aware = "needed" instead',
        ),
        PassInfo(
            name="int8-dynamic",
            what="dynamic INT8: matrix products with activations scaled at run time; needs no examples",
            module="compiler.passes.int8_dynamic",
            precision="int8-dynamic",
            targets=_CPU,
        ),
        PassInfo(
            name="int8-weights",
            what="weights in 8 bits by blocks, activations in float",
            module="compiler.passes.weights.weights_only",
            precision="int8-weights",
            targets=(*_CPU, CUDA),
        ),
        PassInfo(
            name="int4-weights",
            what="weights in 4 bits by blocks (RTN, HQQ, GPTQ or AWQ), activations in float",
            module="compiler.passes.weights.weights_only",
            precision="int4-weights",
            targets=(*_CPU, CUDA),
        ),
        PassInfo(
            name="fp16",
            what="half precision inside, float32 at inputs and outputs",
            module="compiler.passes.fp16",
            precision="fp16",
            targets=_HALVES,
        ),
        PassInfo(
            name="tensorrt-rtx",
            what="a TensorRT for RTX engine, built ahead of time without a GPU",
            module="compiler.passes.tensorrt_rtx",
            targets=(TENSORRT_RTX,),
            toolchain="tensorrt-rtx",
        ),
        PassInfo(
            name="tensorrt",
            what="a TensorRT engine for the GPU of this machine",
            module="compiler.passes.tensorrt",
            targets=(TENSORRT,),
            toolchain="tensorrt",
        ),
        PassInfo(
            name="genai",
            what="a language model for onnxruntime-genai, weights in 4 bits",
            module="compiler.passes.genai",
            precision="int4-weights",
            targets=(GENAI_CPU, GENAI_CUDA),
            toolchain="optimum",
        ),
        PassInfo(
            name="shard",
            what="cut the graph into pipeline stages",
            module="compiler.passes.shard",
            set_by="stages are cut by 'penstock compile shard'",
        ),
    )
}


def find(name: str) -> PassInfo:
    """Return the pass of that name.

    Raises:
        ConfigError: no such pass.
    """
    if name not in PASSES:
        raise ConfigError(f"passes: unknown pass {name!r}; {nearest(name, PASSES)}")
    return PASSES[name]
