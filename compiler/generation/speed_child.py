"""A program: load a built model in a process of its own, and time it; see ``compiler.generation.built_model.speed``.

Job: ``model`` (a directory), ``prompt_tokens``, ``new_tokens``, ``rounds`` (at most; fewer when a slow model has taken
its time), ``memory_bytes`` (that it may take beside what this process has). The first run of a model is here, so that
one that kills its process ends no compilation without a word, and so that memory is counted of a process that has
nothing else to do.
"""

from __future__ import annotations

import contextlib
import importlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

from compiler.generation.serving_engine import Asked
from penstock.errors import PenstockError
from penstock.process.limits import limit_memory
from penstock.toolchain.programs.protocol import InputError, progress, serve
from penstock.wording import size

_ROUNDS, _BUDGET_S = 3, 5.0  # at least, whatever they take; no further round is begun after that long
_LIBRARIES = ("penstock.runtime.onnx", "onnxruntime_genai", "tokenizers", "llguidance")
_KIB = 1024 if sys.platform != "darwin" else 1


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Load, and time rounds; the first one allocates and is not counted."""
    before, began = _resident_bytes(), time.perf_counter()
    for library in _LIBRARIES:  # what a library takes is not what the model wants
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    limit_memory(int(job["memory_bytes"]))
    try:
        return _measured(job, before, began)
    except MemoryError as error:
        raise InputError(
            f"it wants more than the {size(job['memory_bytes'])} of memory that a first run may take"
        ) from error
    except PenstockError as error:
        raise InputError(error.message) from error


def _measured(job: dict[str, Any], before: int, began: float) -> dict[str, Any]:
    with Asked(Path(job["model"])) as asked:
        loaded = {"load_s": time.perf_counter() - began, "load_bytes": max(0, _resident_bytes() - before)}
        timed = []
        ends_at = time.perf_counter() + _BUDGET_S
        for number in range(int(job["rounds"]) + 1):
            if number > _ROUNDS and time.perf_counter() > ends_at:
                break
            progress(number / (job["rounds"] + 1), "speed")
            timed.append(asked.round(int(job["prompt_tokens"]), int(job["new_tokens"]), number))
    first_s, token_s = zip(*timed[1:], strict=True)
    return {
        "first_token_s": min(first_s),
        "tokens_per_s": 1 / min(token_s),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        **loaded,
    }


def _resident_bytes() -> int:
    """Return the memory in use now, where the system says it; elsewhere the peak until now."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


if __name__ == "__main__":
    serve(measure)
