"""A program for a toolchain's own interpreter: does it work? Imports the standard library and what it is told to try.

Started as ``python probe.py NAME MODULE...``; writes one JSON line before each step (``{"step": "import torch"}``) and
one after it (``{"ok": "2.13.0"}`` or ``{"problem": "..."}``), so that whoever reads it knows where it died: some of
these libraries end the process where there is no driver. Never imported by Penstock itself.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CUDA_LIBRARY = "libcuda.so.1"
_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
_NEEDS_TENSORRT = re.compile(rb"libnvinfer\.so\.(\d+)")


def main() -> None:
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    name, *modules = sys.argv[1:]
    steps: list[tuple[str, Callable[[], str]]] = [
        *((f"import {module}", lambda module=module: _import(module)) for module in modules),
        *_FURTHER.get(name, ()),
    ]
    for words, step in steps:
        wire.write(json.dumps({"step": words}) + "\n")
        try:
            said = {"ok": step()}
        except BaseException as error:  # a library's SystemExit is an answer too
            said = {"problem": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        wire.write(json.dumps(said) + "\n")


def _import(name: str) -> str:
    module = importlib.import_module(name)
    return str(getattr(module, "__version__", ""))


def _rtx_builder() -> str:
    trt: Any = importlib.import_module("tensorrt_rtx_bindings")
    trt.Builder(trt.Logger(trt.Logger.ERROR))
    return f"builder for {', '.join(name for name in trt.ComputeCapability.__members__ if name.startswith('SM'))}"


def _driver() -> str:
    """Say what the driver's cuInit returned; its number is all it says: 100 is 'no device', 803 'driver older than the
    library'.
    """
    try:
        library = ctypes.CDLL(_CUDA_LIBRARY)
    except OSError:
        raise RuntimeError(f"no NVIDIA driver: {_CUDA_LIBRARY} is not found") from None
    status = library.cuInit(0)
    if status != 0:
        raise RuntimeError(f"the NVIDIA driver does not start (cuInit says {status}); see nvidia-smi")
    version = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    return f"driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _builder() -> str:
    """Make a builder. Without a driver this raises a TypeError that says "nullptr", or ends the process."""
    trt: Any = importlib.import_module("tensorrt")
    trt.Builder(trt.Logger(trt.Logger.ERROR))
    return f"builder of TensorRT {trt.__version__}"


def _lean_runtime() -> str:
    """Make a runtime. This ends the process with a segmentation fault where the driver is missing or too old."""
    try:
        lean: Any = importlib.import_module("tensorrt_lean")
    except ImportError:
        return "not installed, not needed"
    lean.Runtime(lean.Logger(lean.Logger.ERROR))
    return f"lean runtime {lean.__version__}"


def _pair() -> str:
    """Check that onnxruntime's TensorRT provider, which is linked to one major version, finds that one: with another it
    falls back in silence.
    """
    provider = _provider_library()
    if provider is None:
        return "onnxruntime-gpu is not installed, not needed"
    wanted = needed_major(provider.read_bytes())
    found = _tensorrt_version()
    if wanted is None or found is None:
        return "no pair to check"
    if found.split(".")[0] != str(wanted):
        raise RuntimeError(
            f"onnxruntime-gpu's TensorRT provider needs libnvinfer.so.{wanted}, and TensorRT {found} is installed: it "
            f"would run on CUDA or the CPU without a word; install 'tensorrt=={wanted}.*'"
        )
    return f"onnxruntime-gpu and TensorRT {found} fit together"


def needed_major(library: bytes) -> int | None:
    """Return the major version of TensorRT that a shared library is linked to."""
    found = _NEEDS_TENSORRT.search(library)
    return int(found[1]) if found else None


def _provider_library() -> Path | None:
    try:
        files = importlib.metadata.files("onnxruntime-gpu") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if str(file) == _PROVIDER), None)


def _tensorrt_version() -> str | None:
    for package in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


_FURTHER: dict[str, tuple[tuple[str, Callable[[], str]], ...]] = {
    "tensorrt-rtx": (("make a builder", _rtx_builder),),
    "tensorrt": (
        ("start the NVIDIA driver", _driver),
        ("make a builder", _builder),
        ("make a lean runtime", _lean_runtime),
        ("compare onnxruntime-gpu with TensorRT", _pair),
    ),
    "pair": (("compare onnxruntime-gpu with TensorRT", _pair),),
}

if __name__ == "__main__":
    main()
