"""Memory of a run that is much larger than usual is given back; what is usual costs nothing and keeps it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from penstock.runtime.arena import FACTOR, ArenaUse
from tests.factories import onnx_model
from tests.waiting import PATIENCE_S

FULL = 64


def test_what_was_warmed_up_for_is_always_usual() -> None:
    use = ArenaUse(FULL)
    assert not any(use.gives_back(work) for work in (1, FULL, 1, FULL) * 1000)


def test_a_run_far_beyond_it_gives_back_what_it_took() -> None:
    use = ArenaUse(FULL)
    assert use.gives_back(100 * FULL)
    assert use.kept == 0
    assert not use.gives_back(1), "once: nothing is left to give back"


def test_large_runs_in_a_row_become_usual_and_keep_their_memory() -> None:
    use = ArenaUse(FULL)
    given_back = [use.gives_back(100 * FULL) for _ in range(50)]
    assert 5 <= given_back.count(True) <= 10
    assert given_back == sorted(given_back, reverse=True), "first they do, then never again"


def test_one_large_run_among_fifty_is_usual_and_among_a_thousand_is_not() -> None:
    for others, is_usual in ((50, True), (1000, False)):
        use = ArenaUse(FULL)
        for _ in range(100):
            gives_back = use.gives_back(100 * FULL)
            small = [use.gives_back(1) for _ in range(others)]
        assert gives_back is not is_usual
        assert not any(small)


def test_what_large_runs_keep_is_given_back_when_they_come_no_more() -> None:
    use = ArenaUse(FULL)
    for _ in range(50):
        use.gives_back(100 * FULL)
    assert use.kept == 100 * FULL
    small = [use.gives_back(1) for _ in range(5000)]
    assert small.count(True) == 1
    assert use.kept <= FULL


@given(st.lists(st.integers(0, 10**9), max_size=200), st.integers(1, 10**6))
def test_no_more_is_kept_than_a_few_times_what_is_usual(works: list[int], least: int) -> None:
    use = ArenaUse(least)
    for work in works:
        usual = use.usual
        use.gives_back(work)
        assert use.kept <= FACTOR * usual
        assert use.usual >= least


PROGRAM = """
import json, sys, time
from pathlib import Path
import numpy as np
from penstock.runtime import EngineOptions, load_engine

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

engine = load_engine("onnx", Path(sys.argv[1]), EngineOptions(usual_rows=2))
row, many = np.zeros((1, 3, 96, 96), np.float32), np.zeros((48, 3, 96, 96), np.float32)
for _ in range(3):
    engine.run({"x": np.concatenate([row, row])})
before = resident_bytes()
engine.run({"x": many})
high = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
give_up = time.monotonic() + float(sys.argv[2])
while resident_bytes() - before > (1024 * high - before) / 4 and time.monotonic() < give_up:
    time.sleep(0.05)
print(json.dumps({"before": before, "high": 1024 * high, "after": resident_bytes()}))
"""


def test_a_process_gives_the_memory_of_an_unusually_large_run_back(tmp_path: Path) -> None:
    weights = {"a": np.zeros((32, 3, 3, 3), np.float32), "b": np.zeros((32, 32, 3, 3), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["wide"], pads=[1] * 4),
        helper.make_node("Conv", ["wide", "b"], ["wider"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["wider"], ["y"]),
    ]
    model = onnx_model(nodes, weights, inputs={"x": ["n", 3, 96, 96]}, outputs={"y": ["n", 32, 1, 1]})
    onnx.save(model, tmp_path / "m.onnx")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m.onnx"), str(PATIENCE_S / 4)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout)
    took = found["high"] - found["before"]
    assert took > 80 * 2**20, f"the run took memory worth giving back: {found}"
    assert found["after"] - found["before"] <= took / 4, found
