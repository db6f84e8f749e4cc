"""A program: load ONNX files and run a row of each, one by one, under limits; see ``compiler.measure.first_run``.

Reads requests from standard input and writes a reply for each, in lines of JSON. The memory that it may take is given
when it starts. The processor time is limited again for each, so a child whose parent was killed ends too.
"""

from __future__ import annotations

import math
import resource
import sys
from pathlib import Path

import msgspec
import numpy as np

from compiler.data import calls
from compiler.measure.first_run import Reply, Request
from penstock.errors import PenstockError
from penstock.process.limits import limit_memory
from penstock.runtime import Engine, EngineOptions, load_engine, onnx
from penstock.wire import tensors
from penstock.wire.tensors import Array, numpy_dtype

_MEMORY_WORDS = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "cannot allocate",
    "exceeds the supported maximum",
)


def main(allowed_bytes: int) -> None:
    """Answer requests until standard input ends."""
    assert onnx, "imported before memory is limited: the library is not what a model needs"
    limit_memory(allowed_bytes)
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        _limit_time(request.seconds)
        sys.stdout.buffer.write(msgspec.json.encode(_tried(request)) + b"\n")
        sys.stdout.buffer.flush()


def _tried(request: Request) -> Reply:
    engine: Engine | None = None
    try:
        engine = load_engine("onnx", Path(request.model), EngineOptions(threads=1))
        row = _row(request, engine)
        if row is not None:
            engine.run(row)
    except MemoryError:
        return Reply(problem="out of memory", is_memory=True)
    except PenstockError as error:  # what is wrong with the model otherwise is found, and told, where it is used
        words = error.message.lower()
        is_memory = any(word in words for word in _MEMORY_WORDS)
        return Reply(problem=" ".join(error.message.split())[-300:], is_memory=is_memory)
    finally:
        if engine is not None:
            engine.close()
    return Reply()


def _row(request: Request, engine: Engine) -> dict[str, Array] | None:
    """Return what to ask: the row of the request, or zeros where every size is fixed; None for nothing."""
    if request.row:
        return calls.first(tensors.unpack(Path(request.row).read_bytes()), engine.inputs, rows=1)
    fixed = all(size > 0 for spec in engine.inputs for size in spec.shape)
    if not fixed or any(spec.datatype == "BYTES" for spec in engine.inputs):
        return None
    return {spec.name: np.zeros(spec.shape, numpy_dtype(spec.datatype)) for spec in engine.inputs}


def _limit_time(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
