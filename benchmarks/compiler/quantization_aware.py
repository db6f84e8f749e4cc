"""``python -m benchmarks.compiler.quantization_aware``: students in int8, with and without their rounding in training.

Each student learns from the same teacher in the torch toolchain, once a seed. It is quantized as a compilation would
(three ways to find ranges, of which the tuning rows choose one), and fine-tuned with its rounding; the test rows, which
nothing chose on, tell them apart. Rows of different seeds are the same rows: they count as one each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn import datasets

from benchmarks.compiler.case import dealt, write_data
from benchmarks.compiler.cases import mlp
from benchmarks.report import machine
from compiler.artifact.evaluation import Drop
from compiler.data import Split, calls, loading
from compiler.measure import cost, gate, speedups
from compiler.passes import distill, table
from compiler.passes.distill import DistillJob
from compiler.passes.job import PassJob
from compiler.pipeline.cached_steps import as_it_is
from compiler.pipeline.trials import CALIBRATORS
from compiler.progress import unwatched
from compiler.recipe import recipes, targets
from penstock.artifact.blobs import digest_of_file

ROOT = Path(__file__).resolve().parents[2] / "out" / "bench" / "compiler" / "quantization-aware"
STUDENTS = {
    "hardswish": "separable, 8 wide, hard-swish",
    "silu": "separable, 8 wide, SiLU",
    "relu6": "separable, 4 wide, ReLU6",
    "mlp": "MLP 64-16-16-10",
}
_DARKEST = 1 / 100
_COUNTS = {"train": 800, "tune": 300, "certify": 20, "test": -1}
_RECIPE = """
[model]
name = "{student}"
[edge]
model = "{factories}:{student}"
distill = true
[cloud]
model = "teacher.onnx"
[data]
source = "data.npz"
labels = "y"
repeats = "natural"
[data.splits]
tune = "tune"
[distill]
split = "train"
lr = 0.01
quantization_aware = "always"
seed = {seed}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of one student: right answers to the test rows by model, speeds against float, and seconds."""

    right: Mapping[str, NDArray[np.bool_]]
    speed: Mapping[str, float]
    student_s: float
    trained_s: float


def main() -> int:
    options = _options()
    about = machine()
    target = targets.resolve(options.target)
    print(f"{about['cpu']}, {about['cpus']} CPUs; {target.integers} for {target.name}, {options.seeds} seeds\n")
    print("| student | float | int8 | costs, points [95%] | quantization-aware | costs, points [95%] |"
          " gained [95%] | speed of int8, trained | student, fine-tuning |")  # fmt: skip
    print("|---" * 9 + "|")
    options.dir.mkdir(parents=True, exist_ok=True)
    _write(options.dir)
    for name in options.students:
        print(_line(name, [_found(name, seed, options) for seed in range(options.seeds)]), flush=True)
    return 0


class _Options(argparse.Namespace):
    students: Sequence[str]
    seeds: int
    target: str
    dir: Path


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiler.quantization_aware", description=__doc__)
    parser.add_argument("students", nargs="*", metavar="STUDENT", help=f"of {', '.join(STUDENTS)}; all when left out")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind")
    parser.add_argument("--target", default="host")
    parser.add_argument("--dir", type=Path, default=ROOT, help="for models and data")
    options = parser.parse_args(namespace=_Options())
    unknown = [name for name in options.students if name not in STUDENTS]
    if unknown:
        parser.error(f"no student {', '.join(unknown)}; there are {', '.join(STUDENTS)}")
    options.students, options.dir = options.students or tuple(STUDENTS), options.dir.resolve()
    return options


def _write(directory: Path) -> None:
    """Write digits, each under a light of its own down to a hundredth, and a teacher of them."""
    pixels, y = datasets.load_digits(return_X_y=True)
    light = np.exp(np.random.default_rng(2).uniform(np.log(_DARKEST), 0, len(y)))
    x, y = (pixels / 16 * light[:, None]).astype(np.float32), y.astype(np.int64)
    rows = dealt(_COUNTS, len(y), seed=0)
    write_data(directory / "data.npz", {"x": x}, y, {**rows, "fit": rows["train"][:300]})
    onnx.save(mlp(x[rows["train"]], y[rows["train"]], (128, 64)), str(directory / "teacher.onnx"))


def _found(name: str, seed: int, options: _Options) -> Found:
    out = options.dir / f"{name}-{seed}"
    out.mkdir(exist_ok=True)
    file = options.dir / f"{name}-{seed}.toml"
    factories = Path(__file__).with_name("thin_students.py")
    file.write_text(_RECIPE.format(student=name, factories=factories, seed=seed))
    recipe, teacher = recipes.load(file), options.dir / "teacher.onnx"
    data = loading.load(recipe.data, recipe.base, as_it_is(teacher).inputs, classes=10)
    job = DistillJob(
        recipe=recipe,
        student=recipe.rungs[0].section.model,
        teacher=teacher,
        content=digest_of_file(teacher),
        data=data,
    )
    _progress(f"{name}, seed {seed}: student")
    began = time.monotonic()
    student = distill.run(job, out, _made(out / "work"), unwatched).path
    student_s = time.monotonic() - began
    rows, settings = distill.quantization_aware(job)
    target = targets.resolve(options.target)

    def apply(what: str, source: Path, examples: Split, **given: Any) -> Path:
        _progress(f"{name}, seed {seed}: {what} {given.get('calibrator', '')}")
        made = _made(out / "-".join([what, *(str(value) for value in given.values() if isinstance(value, str))]))
        takes = as_it_is(source).inputs
        batches = PassJob(
            source=source,
            out=made,
            target=target,
            options=given,
            calibration=lambda: calls.each(examples, 64, takes),
        )
        return made / table.find(what).load()(batches).model

    exact = apply("optimize", student, data.ranges)
    static = {kind: apply("int8", exact, data.ranges, calibrator=kind) for kind in CALIBRATORS}
    best = max(static.values(), key=lambda path: int(_right(path, data.tune).sum()))
    began = time.monotonic()
    trained = apply("int8-qat", exact, rows, output="logits", **settings)
    trained_s = time.monotonic() - began
    models = {"float": exact, "int8": best, "trained": trained}
    seconds = cost.call_seconds({key: as_it_is(path) for key, path in models.items()}, data.test.inputs)
    return Found(
        right={key: _right(path, data.test) for key, path in models.items()},
        speed={key: speedups.speedup(seconds["float"]["32"], found["32"]).value for key, found in seconds.items()},
        student_s=student_s,
        trained_s=trained_s,
    )


def _right(path: Path, split: Split) -> NDArray[np.bool_]:
    assert split.labels is not None
    said = as_it_is(path).run(split.inputs)["logits"]
    return np.asarray(said.argmax(axis=1) == split.labels)


def _line(name: str, found: Sequence[Found]) -> str:
    rows = np.tile(np.arange(len(found[0].right["float"])), len(found))
    right = {key: np.concatenate([one.right[key] for one in found]) for key in found[0].right}
    by_row = {key: gate.by_cluster(values, rows) for key, values in right.items()}

    def share(key: str) -> str:
        each = [100 * float(one.right[key].mean()) for one in found]
        return f"{100 * right[key].mean():.2f} ({', '.join(f'{value:.1f}' for value in each)})"

    def points(drop: Drop, sign: int = 1) -> str:
        ends = sorted((100 * sign * drop.low, 100 * sign * drop.high))
        return f"{100 * sign * drop.value:.2f} [{ends[0]:.1f}, {ends[1]:.1f}]"

    cells = (
        STUDENTS[name],
        share("float"),
        share("int8"),
        points(gate.paired_drop(by_row["float"], by_row["int8"])),
        share("trained"),
        points(gate.paired_drop(by_row["float"], by_row["trained"])),
        points(gate.paired_drop(by_row["int8"], by_row["trained"]), -1),
        ", ".join(f"{np.median([one.speed[key] for one in found]):.2f}x" for key in ("int8", "trained")),
        f"{np.mean([one.student_s for one in found]):.0f} s, {np.mean([one.trained_s for one in found]):.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


_BEGAN = time.monotonic()


def _progress(message: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
