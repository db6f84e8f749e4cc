"""Build a TensorRT engine for the GPU of this machine, whose kernels are timed for it. Toolchain ``tensorrt``.

Job: as in ``tensorrt_rtx_build``, with ``timing_cache`` (a file that is read if it exists, and written) and
``version_compatible`` in place of ``compute_capabilities``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorrt as trt
import tensorrt_cuda
import tensorrt_engine
from protocol import serve


def build(job: dict[str, Any]) -> dict[str, Any]:
    device = tensorrt_cuda.Device()
    facts = {"compute_capabilities": [device.compute_capability], "driver": device.driver, "gpu": device.name}

    def configure(builder: Any, config: Any) -> Callable[[Any], dict[str, Any]]:
        path = Path(job["timing_cache"])
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        # a cache of another device or version is refused by the library, which then starts an empty one
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        if job["version_compatible"]:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)

        def finish(config: Any) -> dict[str, Any]:
            path.write_bytes(bytes(config.get_timing_cache().serialize()))
            return facts

        return finish

    return tensorrt_engine.build(trt, job, configure)


serve(build)
