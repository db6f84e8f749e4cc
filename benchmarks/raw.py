"""onnxruntime alone, one thread, no server: the upper bound of whoever serves the file. Prints a Sample as JSON."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from benchmarks.load import Sample, Spec, sample_of


def measure(spec: Spec) -> Sample:
    """Run one model file back to back with ``spec.callers`` rows a batch."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(spec.address, options, providers=["CPUExecutionProvider"])
    row = np.frombuffer(Path(spec.request).read_bytes(), np.float32)
    shape = [spec.callers, *session.get_inputs()[0].shape[1:]]
    inputs = {"x": np.ascontiguousarray(np.broadcast_to(row.reshape(1, *shape[1:]), shape))}
    session.run(None, inputs)
    started = time.perf_counter()
    done: list[tuple[float, float]] = []
    at = started
    while at < started + spec.warmup_s + spec.duration_s or len(done) < 2:
        session.run(None, inputs)
        done.append((time.perf_counter(), at))
        at = done[-1][0]
    return sample_of(done, after=started + spec.warmup_s, rows=spec.callers)


if __name__ == "__main__":
    print(msgspec.json.encode(measure(msgspec.json.decode(sys.argv[1], type=Spec))).decode())
