"""A small distillation that is quick and real: the digits, their kernel teacher, and students for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.data.dataset import Split
from compiler.distill.cache import AnswerCache
from compiler.distill.student import Request
from compiler.distill.teacher import LocalTeacher
from compiler.progress import Progress
from compiler.recipe.distill_section import DistillSection
from examples.digits import data as digits_data
from examples.digits import train as digits_train
from penstock.artifact.blobs import digest_of_file
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array, TensorSpec

SETTINGS = set(DistillSection.__struct_fields__) - {"teacher"}
NETS = """
import time
from pathlib import Path

import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def probabilities():
    return nn.Sequential(nn.Linear(64, 10))

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Dropout(0.2)
    def forward(self, h):
        return h + self.drop(torch.relu(self.norm(self.linear(h))))

class Deep(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(64, 24), nn.ModuleList(blocks), nn.Linear(24, 10)
    def forward(self, x):
        h = self.first(x / 16)
        for block in self.blocks:
            h = block(h)
        return self.last(h)

def deep():
    return Deep([Block() for _ in range(2)])

STEPS = Path(__file__).with_name("steps")

class Held(Deep):
    # trains as many steps in a process as the file says, if there is one, and then waits: who interrupts it need not be
    # faster than the training
    steps = 0
    def forward(self, x):
        if self.training:
            self.steps += 1
            while STEPS.exists() and self.steps > int(STEPS.read_text() or 0):
                time.sleep(0.01)
        return super().forward(x)

def held():
    return Held([Block() for _ in range(2)])

def four():
    torch.manual_seed(5)
    return Deep([Block() for _ in range(4)])

def seven():
    return nn.Linear(64, 7)

def explodes():
    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)
        def forward(self, x):
            return self.linear(x).exp().exp()
    return Explodes()

def batch_bound():
    class BatchBound(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)
        def forward(self, x):
            return self.linear(x) * float(len(x))
    return BatchBound()
"""


@dataclass
class FakeTeacher:
    """Answers with a linear map; counts the rows it is asked for, and can fail."""

    weight: NDArray[np.float32]
    fingerprint: str = "sha256:fake"
    is_pinned: bool = True
    chunk_rows: int = 10
    asked: list[int] = field(default_factory=list)
    fail: Callable[[int], Exception | None] = lambda calls: None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="x", datatype="FP32", shape=(-1, len(self.weight))),)

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(name="logits", datatype="FP32", shape=(-1, self.weight.shape[1]))

    def answer(self, inputs: Mapping[str, Array], report: Progress) -> Array:
        error = self.fail(len(self.asked))
        if error is not None:
            raise error
        self.asked.append(len(inputs["x"]))
        report(1.0, "asked")
        return np.asarray(inputs["x"] @ self.weight)


@pytest.fixture
def linear_teacher() -> FakeTeacher:
    return FakeTeacher(weight=np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Splits of the digits, and the teacher's file."""

    splits: Mapping[str, Split]
    teacher: Path
    nets: Path

    def request(self, out: Path, **changes: Any) -> Request:
        """A request for ``out/student.onnx``; ``changes`` go to the section where it has them, else to the request."""
        own = {name: changes.pop(name) for name in list(changes) if name in SETTINGS}
        engine = load_engine("onnx", self.teacher, EngineOptions(threads=1))
        defaults: dict[str, Any] = {
            "section": DistillSection(**{"student": "nets.py:make", "threads": 1, **own}),
            "base": self.nets,
            "teacher": LocalTeacher(engine, content=digest_of_file(self.teacher)),
            "teacher_name": "teacher.onnx",
            "train": self.splits["train"],
            "cache": AnswerCache(out / "answers"),
            "work": out / "work",
            "out": out / "student.onnx",
        }
        return Request(**{**defaults, **changes})

    def accuracy(self, student: Path) -> float:
        """Share of the test digits that a student gets right."""
        test = self.splits["test"]
        engine = load_engine("onnx", student, EngineOptions(threads=1))
        said = engine.run(test.inputs)[engine.outputs[0].name].argmax(axis=1)
        assert test.labels is not None
        return float(np.mean(said == test.labels))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    directory = tmp_path_factory.mktemp("distill-digits")
    parts = digits_data.load(0)
    (directory / "teacher.onnx").write_bytes(digits_train.fit_teacher(parts["train"]))
    (directory / "nets.py").write_text(NETS)
    parts["fit"] = parts.pop("tune")  # what a recipe that names no split to tune on divides
    splits = {name: Split(name=name, inputs={"x": part.x}, labels=part.y) for name, part in parts.items()}
    return Digits(splits=splits, teacher=directory / "teacher.onnx", nets=directory)


@pytest.fixture(scope="session")
def torch(toolchain: Callable[[str], str]) -> str:
    return toolchain("torch")
