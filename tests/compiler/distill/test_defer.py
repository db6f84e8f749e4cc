"""Does ending the training so that confidence tells right from wrong help a cascade? Measured on real digits.

Figures are shares of test digits that could be kept while at most half a point (one point) of all digits is kept and
harmful. One process trains every student: starting torch takes longer than training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from compiler.distill.figures import coverage_at_harm
from penstock import toolchain
from penstock.policy import confidence
from penstock.runtime import EngineOptions, load_engine

RUNNERS = Path(__file__).parents[3] / "compiler" / "runners"
SEEDS = range(2)
TRAINING = 900
PROGRAM = f"""
import sys
sys.path.insert(0, {str(RUNNERS)!r})
import distill
from protocol import serve

def train(job):
    return {{"notes": [distill.distill(one)["notes"] for one in job["jobs"]]}}

serve(train)
"""
NETS = """
from torch import nn

def make(hidden):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

def four():
    return make(4)

def eight():
    return make(8)
"""


class Bench:
    """Digits dealt by a seed, a support vector machine's answers, and one job a student."""

    def __init__(self, root: Path, seed: int) -> None:
        self.seed = seed
        self.directory = root / str(seed)
        self.directory.mkdir()
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(x))
        x, y = x[order], y[order].astype(np.int64)
        centre, spread = x[:TRAINING].mean(axis=0), x[:TRAINING].std(axis=0) + 1e-3
        x = ((x - centre) / spread).astype(np.float32)
        scores = SVC(C=5, decision_function_shape="ovr").fit(x[:TRAINING], y[:TRAINING]).decision_function(x)
        teacher = np.ascontiguousarray(scores, dtype=np.float32)
        self.x, self.y, self.cloud = x[TRAINING:], y[TRAINING:], teacher[TRAINING:].argmax(axis=1)
        rows = np.random.default_rng(seed).permutation(TRAINING)
        for name, array in {
            "x": x[:TRAINING],
            "labels": y[:TRAINING],
            "teacher": teacher[:TRAINING],
            "train": np.sort(rows[135:]),
            "validation": np.sort(rows[:135]),
        }.items():
            np.save(self.directory / f"{name}.npy", array)
        (self.directory / "nets.py").write_text(NETS)

    def job(self, net: str, defer: str, epochs: int) -> dict[str, Any]:
        at = self.directory
        name = f"{net}-{defer}-{epochs}"
        settings = {"epochs": epochs, "batch_size": 64, "lr": 0.01, "temperature": 2.0, "alpha": 0.3, "defer": defer}
        limits = {"patience": 0, "seed": self.seed, "threads": 1, "max_seconds": 600.0, "checkpoint_s": 600.0}
        return {
            "key": name,
            "base": at,
            "student": {"kind": "factory", "named": net, "factory": net, "module": "", "file": at / "nets.py"},
            "teacher_model": None,
            "inputs": [{"name": "x", "file": at / "x.npy", "free": [0]}],
            **{array: at / f"{array}.npy" for array in ("labels", "train", "validation", "teacher")},
            "classes": 10,
            "output": "logits",
            "output_kind": "logits",
            "output_datatype": "FP32",
            "settings": {**settings, **limits, "defer_weight": 0.5},
            "processors": 1,
            "checkpoint": at / f"{name}.checkpoint",
            "onnx": at / f"{name}.onnx",
            "said": at / f"{name}.npy",
        }

    def figures(self, job: dict[str, Any]) -> list[float]:
        """Coverage at half a point and at one point of harm, and accuracy, on digits that nobody learned from."""
        said = load_engine("onnx", job["onnx"], EngineOptions()).run({"x": self.x})["logits"]
        wrong = said.argmax(axis=1) != self.y
        scores, harmful = confidence.score(said, kind="logits"), np.asarray(wrong & (self.cloud == self.y))
        return [*(coverage_at_harm(scores, harmful, harm) for harm in (0.005, 0.01)), float(np.mean(~wrong))]


Made = dict[tuple[int, str, str, int], tuple[Bench, dict[str, Any], list[str]]]


@pytest.fixture(scope="module")
def made(torch: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Students by (seed, net, defer, epochs); with 90 epochs, "gatekeeper" passes over the rows 120 times."""
    root = tmp_path_factory.mktemp("defer")
    (root / "train.py").write_text(PROGRAM)
    wanted = [(seed, "four", defer, epochs) for seed in SEEDS for defer, epochs in (("none", 120), ("gatekeeper", 90))]
    wanted += [(seed, "eight", defer, 30) for seed in SEEDS for defer in ("none", "gatekeeper")]
    benches = {seed: Bench(root, seed) for seed in SEEDS}
    jobs = [benches[seed].job(*rest) for seed, *rest in wanted]
    notes = toolchain.call(torch, root / "train.py", {"jobs": jobs})["notes"]
    return {key: (benches[key[0]], job, note) for key, job, note in zip(wanted, jobs, notes, strict=True)}


def test_gatekeeper_keeps_more_at_the_same_harm(made: Made) -> None:
    """Four hidden units: a student that cannot know everything."""

    def mean(defer: str, epochs: int) -> NDArray[np.float64]:
        found = [made[seed, "four", defer, epochs] for seed in SEEDS]
        return np.mean([bench.figures(job) for bench, job, _ in found], axis=0)

    gained = mean("gatekeeper", 90) - mean("none", 120)
    print(np.round(mean("none", 120), 3), np.round(gained, 3))
    assert gained[0] > 0.02
    assert gained[1] > 0.02
    assert gained[2] > -0.02, "accuracy is not what pays for it"


def test_what_does_not_help_is_undone(made: Made) -> None:
    for seed in SEEDS:
        _, plain, _ = made[seed, "eight", "none", 30]
        _, tuned, notes = made[seed, "eight", "gatekeeper", 30]
        is_same = Path(plain["onnx"]).read_bytes() == Path(tuned["onnx"]).read_bytes()
        assert is_same == any("did not help" in note for note in notes)
