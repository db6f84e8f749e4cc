"""A program: load one ONNX file, run one row, print how much the process grew by (peak resident set, bytes).

A process of its own, because a peak is never given back: what ran before would hide what this model needs.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from penstock.runtime import EngineOptions, load_engine, onnx
from penstock.wire import tensors

_KIB = 1024 if sys.platform != "darwin" else 1


def main(model: Path, row: Path) -> int:
    """Load ``model``, run ``row``, and return how many bytes the process grew by."""
    assert onnx, "imported before the first reading: the library is not what this model needs"
    inputs = tensors.unpack(row.read_bytes())
    before = peak_bytes()
    engine = load_engine("onnx", model, EngineOptions(threads=1))
    engine.run(inputs)
    return peak_bytes() - before


def peak_bytes() -> int:
    """Return the largest resident set of this program so far, in bytes.

    Linux: of its own address space. What ``getrusage`` says there begins with the peak of the process that started
    this one, so that a model that is smaller than its compiler would seem to need nothing.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), "")
        if line:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


if __name__ == "__main__":
    sys.stdout.write(f"{main(Path(sys.argv[1]), Path(sys.argv[2]))}\n")
