"""Build a TensorRT for RTX engine ahead of time; needs no GPU and no driver. Toolchain ``tensorrt-rtx``.

Job: ``source``, ``engine``, ``profiles`` (input: three shapes), ``compute_capabilities`` (``["8.9"]``),
``optimization_level``, ``words`` (the library's name in messages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorrt_engine
import tensorrt_rtx_bindings as trt
from protocol import InputError, serve


def build(job: dict[str, Any]) -> dict[str, Any]:
    wanted = job["compute_capabilities"]
    known = {_dotted(name): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            f"compute_capabilities: {', '.join(unknown)} is unknown to {job['words']} {trt.__version__}; "
            f"it builds for {', '.join(known)}"
        )

    def configure(builder: Any, config: Any) -> Callable[[Any], dict[str, Any]]:
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(known[name], index)
        return lambda config: {"compute_capabilities": wanted}

    return tensorrt_engine.build(trt, job, configure)


def _dotted(name: str) -> str:
    """Return ``8.9`` for ``SM89``, ``12.0`` for ``SM120``."""
    return f"{name[2:-1]}.{name[-1]}"


serve(build)
