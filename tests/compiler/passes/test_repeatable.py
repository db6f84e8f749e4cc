"""The same job gives the same bytes, in another process with another hash seed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from compiler.graph import files
from compiler.passes.job import PassJob
from compiler.passes.table import PASSES
from compiler.recipe import targets
from tests.compiler.passes import graphs

JOBS = [
    ("optimize", {}),
    ("optimize", {"gemm_to_matmul": True}),
    ("int4-weights", {}),
    ("int4-weights", {"method": "hqq"}),
    ("int8-weights", {"bits": 8, "method": "gptq", "block_size": 16}),
    ("fp16", {}),
    ("prune", {"share": 0.5}),
    ("prune", {"share": 0.5, "scope": "global"}),
    ("prune", {"share": 0.5, "method": "channels"}),
    ("shard", {"stages": 3}),
]
PROGRAM = """
import json, sys
from pathlib import Path
from tests.compiler.passes.test_repeatable import digests
print(json.dumps(digests(Path(sys.argv[1]), Path(sys.argv[2]))))
"""


def digests(source: Path, directory: Path) -> list[dict[str, str]]:
    """SHA-256 of every file that every job writes."""
    import numpy as np

    ids = np.random.default_rng(0).integers(0, 50, (4, 6))
    found = []
    for index, (name, options) in enumerate(JOBS):
        out = directory / str(index)
        out.mkdir(parents=True)
        job = PassJob(
            source=source,
            out=out,
            target=targets.resolve("x86-64-vnni"),
            options=options,
            calibration=lambda: iter([{"ids": ids, "mask": np.ones_like(ids)}]),
        )
        PASSES[name].load()(job)
        found.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())})
    return found


def test_bytes_repeat_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    source = tmp_path / "encoder.onnx"
    files.write(graphs.encoder(), source)
    here = digests(source, tmp_path / "here")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "there")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": "."},
    )
    assert json.loads(done.stdout.splitlines()[-1]) == here
    assert all(here)
