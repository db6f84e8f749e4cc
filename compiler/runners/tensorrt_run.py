"""Run an engine on a GPU: its answers to one batch, and how long it takes. Toolchains ``tensorrt``, ``tensorrt-rtx``.

Job: ``engine``; ``inputs`` (name: ``file`` of raw little-endian bytes, ``shape``); ``out``, a directory for the
outputs' raw bytes; ``repeats``, how often it is timed after the answers are out.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import tensorrt_cuda
import tensorrt_engine
from protocol import InputError, progress, serve

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx_bindings as trt

_WARM_UPS = 5


def run(job: dict[str, Any]) -> dict[str, Any]:
    device = tensorrt_cuda.Device()
    runtime = trt.Runtime(tensorrt_engine.make_logger(trt))
    engine = runtime.deserialize_cuda_engine(Path(job["engine"]).read_bytes())
    if engine is None:
        raise InputError(f"{job['engine']}: the runtime refuses the engine; was it built for this GPU and version?")
    context = engine.create_execution_context()
    for name, given in job["inputs"].items():
        data = Path(given["file"]).read_bytes()
        if not context.set_input_shape(name, given["shape"]):
            raise InputError(f"input {name!r}: shape {given['shape']} is outside of what the engine was built for")
        address = device.allocate(len(data))
        device.upload(address, data)
        context.set_tensor_address(name, address)
    outputs = {name: _output(device, engine, context, name) for name in _names(engine, trt.TensorIOMode.OUTPUT)}
    stream = device.stream()
    _execute(device, context, stream)
    out = Path(job["out"])
    saved = {name: _save(device, out / f"{index}.bin", output) for index, (name, output) in enumerate(outputs.items())}
    return {"outputs": saved, "seconds": _time(device, context, stream, job["repeats"]), "gpu": device.name}


def _names(engine: Any, mode: Any) -> list[str]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name) == mode]


def _output(device: Any, engine: Any, context: Any, name: str) -> dict[str, Any]:
    shape = list(context.get_tensor_shape(name))
    dtype = engine.get_tensor_dtype(name)
    size = math.prod(shape) * dtype.itemsize
    address = device.allocate(size)
    context.set_tensor_address(name, address)
    return {"shape": shape, "dtype": dtype.name.lower(), "address": address, "size": size}


def _save(device: Any, file: Path, output: dict[str, Any]) -> dict[str, Any]:
    file.write_bytes(device.download(output["address"], output["size"]))
    return {"file": str(file), "shape": output["shape"], "dtype": output["dtype"]}


def _execute(device: Any, context: Any, stream: int) -> None:
    if not context.execute_async_v3(stream):
        raise RuntimeError("the engine could not be executed")
    device.synchronize(stream)


def _time(device: Any, context: Any, stream: int, repeats: int) -> float:
    """Measure the median of one batch, in seconds, without the copies."""
    for _ in range(_WARM_UPS):
        _execute(device, context, stream)
    took = []
    for index in range(repeats):
        start = time.perf_counter()
        _execute(device, context, stream)
        took.append(time.perf_counter() - start)
        progress((index + 1) / repeats, "timing")
    return statistics.median(took) if took else 0.0


serve(run)
