"""Students made in the real toolchain: better than few labels, the same after any interruption, and refused well."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.data.dataset import Split
from compiler.distill.student import Student, make_student
from compiler.distill.teacher import LocalTeacher
from compiler.recipe.distill_section import Factory
from penstock.errors import CompileError, ConfigError, InvalidInput, MissingToolchain
from penstock.runtime import EngineOptions, load_engine
from tests.compiler.distill.conftest import Digits, FakeTeacher

pytestmark = pytest.mark.usefixtures("torch")


def without_labels(split: Split) -> Split:
    return Split(name=split.name, inputs=split.inputs, labels=None)


def test_a_teacher_is_worth_more_than_few_labels(digits: Digits, tmp_path: Path) -> None:
    few = digits.splits["train"].take(slice(0, 60), name="few")
    alone = make_student(digits.request(tmp_path / "alone", alpha=1.0, epochs=80, train=few))
    taught = make_student(digits.request(tmp_path / "taught", epochs=60, train=without_labels(digits.splits["train"])))
    assert taught.metrics.settings["alpha"] == 0
    assert taught.metrics.validation.accuracy is None
    gained = digits.accuracy(taught.path) - digits.accuracy(alone.path)
    assert digits.accuracy(taught.path) > 0.88
    assert gained > 0.05, "measured: 0.15"
    check_account(taught, digits)


def check_account(student: Student, digits: Digits) -> None:
    metrics = student.metrics
    assert metrics.train_rows + metrics.validation_rows == digits.splits["train"].rows
    assert [epoch.epoch for epoch in metrics.curve] == list(range(1, metrics.epochs + 1))
    best = min(metrics.curve, key=lambda epoch: epoch.validation_loss)
    assert best.epoch == metrics.best_epoch
    assert metrics.curve[-1].train_loss < metrics.curve[0].train_loss / 2
    assert metrics.largest_difference < 1e-5
    assert metrics.parameters == 64 * 16 + 16 + 16 * 10 + 10
    x = digits.splits["test"].inputs["x"][:9]
    engine = load_engine("onnx", student.path, EngineOptions())
    teacher = load_engine("onnx", digits.teacher, EngineOptions())
    assert (engine.inputs, engine.outputs) == (teacher.inputs, teacher.outputs), "the cloud can answer for the edge"
    (expected,) = ReferenceEvaluator(str(student.path)).run(None, {"x": x})
    np.testing.assert_allclose(engine.run({"x": x})["logits"], expected, rtol=1e-4, atol=1e-4)


class Interrupt:
    """Ctrl-C when an epoch is reached: the runner is killed (SIGKILL) wherever it is."""

    def __init__(self, phase: str, epoch: int) -> None:
        self.mark = f"{phase}: epoch {epoch} "
        self.seen: list[str] = []

    def __call__(self, share: float, note: str) -> None:
        self.seen.append(note)
        if note.startswith(self.mark):
            raise KeyboardInterrupt


def interrupted(digits: Digits, out: Path, phase: str, epoch: int, *, steps: int, **settings: Any) -> None:
    """Train, and interrupt in that epoch, at which the student waits after so many steps."""
    watcher, held_at = Interrupt(phase, epoch), digits.nets / "steps"
    held_at.write_text(str(steps))
    try:
        with pytest.raises(KeyboardInterrupt):
            make_student(digits.request(out, progress=watcher, **settings))
    finally:
        held_at.unlink()
    assert not (out / "student.onnx").exists()
    assert (out / "work" / "checkpoint").exists()


SETTINGS: dict[str, Any] = {
    "student": "nets.py:held",
    "defer": "gatekeeper",
    "epochs": 15,
    "patience": 0,
    "batch_size": 66,
}


@pytest.fixture(scope="module")
def uninterrupted(digits: Digits, torch: str, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Dropout, batch norm, two phases: everything that an interruption could disturb."""
    return make_student(digits.request(tmp_path_factory.mktemp("whole"), **SETTINGS))


def test_killed_twice_and_the_same_to_the_last_byte(digits: Digits, uninterrupted: Student, tmp_path: Path) -> None:
    saving: dict[str, Any] = {**SETTINGS, "checkpoint_s": 0.0}
    first_seen: list[str] = []
    steps = math.ceil(uninterrupted.metrics.train_rows / SETTINGS["batch_size"])  # of an epoch
    interrupted(digits, tmp_path, "distil", 6, steps=5 * steps + 5, **saving)
    # from somewhere in the sixth of fifteen epochs to somewhere in the second of those that follow
    interrupted(digits, tmp_path, "defer", 2, steps=11 * steps + 2, **saving)
    resumed = make_student(digits.request(tmp_path, progress=lambda share, note: first_seen.append(note), **saving))
    trained = [note for note in first_seen if note.startswith(("distil:", "defer:"))]
    assert trained[0].startswith("defer: epoch"), "it went on, and did not begin again"
    assert resumed.path.read_bytes() == uninterrupted.path.read_bytes()
    assert resumed.metrics.curve == uninterrupted.metrics.curve
    assert [epoch.phase for epoch in resumed.metrics.curve] == ["distil"] * 15 + ["defer"] * 5
    assert resumed.metrics.notes == uninterrupted.metrics.notes


def test_a_checkpoint_that_cannot_be_used_is_not(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoint").write_bytes(b"half a checkpoint")
    begun = make_student(digits.request(tmp_path, epochs=2))
    assert begun.metrics.notes[0] == "the checkpoint was damaged; training began again"
    other = make_student(digits.request(tmp_path, epochs=2, seed=1))
    assert "of another student, other data or other settings" in other.metrics.notes[0]
    assert other.metrics.digest != begun.metrics.digest


def test_early_stopping_takes_the_best_epoch(digits: Digits, tmp_path: Path) -> None:
    few = digits.splits["train"].take(slice(0, 80), name="few")
    stopped = make_student(digits.request(tmp_path, epochs=400, patience=4, lr=0.02, train=few)).metrics
    assert stopped.stop == "patience"
    assert stopped.epochs == stopped.best_epoch + 4 < 400
    assert (
        min(epoch.validation_loss for epoch in stopped.curve) == stopped.curve[stopped.best_epoch - 1].validation_loss
    )


def test_probabilities_stay_probabilities(digits: Digits, tmp_path: Path) -> None:
    model = onnx.load(str(digits.teacher))
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["p"], axis=1))
    model.graph.output[0].name = "p"
    onnx.save(model, tmp_path / "teacher.onnx")
    teacher = LocalTeacher(load_engine("onnx", tmp_path / "teacher.onnx", EngineOptions()), content="p")
    made = make_student(
        digits.request(
            tmp_path, student="nets.py:probabilities", epochs=30, teacher=teacher, output_kind="probabilities"
        )
    )
    engine = load_engine("onnx", made.path, EngineOptions())
    assert engine.outputs == teacher._engine.outputs
    said = engine.run(digits.splits["test"].inputs)["p"]
    np.testing.assert_allclose(said.sum(axis=1), 1, atol=1e-5)
    assert digits.accuracy(made.path) > 0.85


def test_layers_of_the_teacher_keep_their_weights(digits: Digits, tmp_path: Path) -> None:
    described = Factory(named="nets.py:four", function="four", file=digits.nets / "nets.py")
    made = make_student(
        digits.request(
            tmp_path, student="layers:2", teacher_model=described, epochs=1, lr=1e-12, train=digits.splits["fit"]
        )
    )
    assert made.metrics.notes[0] == "kept layers 0, 2 of the 4 in blocks"
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(made.path)).graph.initializer}
    shapes = [value.shape for value in kept.values() if value.ndim == 2]
    assert sorted(shapes) == sorted([(24, 64), (24, 24), (24, 24), (10, 24)])


def test_layers_of_an_unknown_teacher_cannot_be_taken(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only known by its answers"):
        make_student(digits.request(tmp_path, student="layers:2"))


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        ("seven", {}, r"float32 \[2, 7\], and the teacher has 10 classes"),
        ("explodes", {}, "the loss became (nan|inf) in epoch 1.*lower distill.lr"),
        ("batch_bound", {"epochs": 1}, "answers otherwise than torch"),
    ],
)
def test_a_student_that_cannot_be_is_refused(
    digits: Digits, tmp_path: Path, student: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        make_student(digits.request(tmp_path, student=f"nets.py:{student}", **settings))
    assert not (tmp_path / "student.onnx").exists()


def test_labels_that_the_teacher_does_not_know(digits: Digits, tmp_path: Path) -> None:
    train = digits.splits["train"]
    assert train.labels is not None
    wrong = Split(name="train", inputs=train.inputs, labels=train.labels + 1)
    with pytest.raises(InvalidInput, match="labels from 1 to 10, but the teacher has classes 0 to 9"):
        make_student(digits.request(tmp_path, train=wrong))


def test_rows_of_another_shape(digits: Digits, tmp_path: Path, linear_teacher: FakeTeacher) -> None:
    with pytest.raises(InvalidInput, match=r"shape is \[700, 64\], expected \[-1, 4\]"):
        make_student(digits.request(tmp_path, teacher=linear_teacher))


def test_without_a_toolchain_nothing_is_begun(
    digits: Digits, tmp_path: Path, linear_teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PENSTOCK_TOOLCHAIN_TORCH", raising=False)
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path / "none"))
    with pytest.raises(MissingToolchain, match="penstock toolchain install torch"):
        make_student(digits.request(tmp_path, teacher=linear_teacher))
    assert linear_teacher.asked == []
