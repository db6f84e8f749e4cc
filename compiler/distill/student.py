"""A student from a teacher: ask it, train in a toolchain, export, compare with torch, judge.

Owns the order, and that nothing appears at the destination before the exported student has answered as torch does. A
run that was interrupted and is started again with the same request and ``work`` continues from its last checkpoint and
ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler.data.dataset import Split
from compiler.distill import figures
from compiler.distill.cache import AnswerCache, Answered, inputs_digest
from compiler.distill.figures import Metrics
from compiler.distill.rows import Rows, choose
from compiler.distill.teacher import Teacher
from compiler.distill.toolchain_models import ToolchainModel, as_job, toolchain_of
from compiler.graph import files
from compiler.progress import Progress, unwatched
from compiler.recipe.distill_section import (
    LATER,
    DistillSection,
    Layers,
    StudentKind,
    check,
    label_weight,
    learning_rate,
    student_of,
)
from penstock import toolchain, wording
from penstock.artifact.blobs import SHARED, digest_of, digest_of_file, disk_errors, write_atomically
from penstock.artifact.manifests import canonical_json
from penstock.errors import CompileError, ConfigError, InvalidInput
from penstock.policy.confidence import Kind
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array, check_inputs

_ASKED, _TRAINED = 0.2, 0.97  # shares of the whole at which the teacher has answered and the student is trained
_EXPORT_TIMEOUT_S = 1800.0
_PARITY_BATCHES = (1, 2, 7, 64)
_RUNNERS = Path(__file__).parents[1] / "runners"
_CODE = (
    "distill.py", "distill_models.py", "distill_training.py", "distill_losses.py", "distill_checkpoint.py",
    "torch_factories.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A student that is to be made.

    Attributes:
        base: what relative paths of the section are relative to: the recipe's directory.
        teacher: answers the rows.
        teacher_name: what people call it.
        teacher_model: the teacher's own modules, which ``layers:K`` takes from; None where only its answers are known.
        output_kind: what the teacher's output holds; the student's holds the same.
        train: what the student may learn from.
        held_out: splits that must not train; see ``compiler.distill.rows``.
        work: outlives an interruption; holds the checkpoint.
        out: the student's file.
    """

    section: DistillSection
    base: Path
    teacher: Teacher
    teacher_name: str
    teacher_model: ToolchainModel | None = None
    output_kind: Kind = "logits"
    train: Split
    held_out: Sequence[Split] = ()
    cache: AnswerCache
    work: Path
    out: Path
    progress: Progress = unwatched
    timeout_s: float = field(default=_EXPORT_TIMEOUT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """What was made: a file, and the account of it."""

    path: Path
    metrics: Metrics

    @property
    def summary(self) -> str:
        """Say in one line what the student is worth."""
        return figures.summary(self.metrics)


def make_student(request: Request) -> Student:
    """Distil, and write the student to ``request.out``.

    Raises:
        ConfigError, InvalidInput, CalibrationError: the section or the data are wrong. MissingToolchain: torch is not
        there. CompileError: training failed (NaN, a student that does not fit), or the export is not the student.
        Unavailable, DeadlineExceeded: the core that teaches went away; what it answered is kept. StorageError.
    """
    section = request.section
    check(section)
    kind = student_of(section, request.base)
    where = toolchain_for(kind, request.teacher_model, section.student)
    toolchain.require(where)
    chosen = choose(request.train, request.held_out, validation=section.validation, seed=section.seed)
    _check_rows(request, chosen)
    alpha = label_weight(section, has_labels=chosen.split.labels is not None)
    with disk_errors(f"creating {request.work}"):
        request.work.mkdir(parents=True, exist_ok=True)
    answered = _ask(request, chosen)
    _check_classes(chosen, answered)
    job = _job(request, chosen, answered, {"alpha": alpha, "lr": learning_rate(section, kind)})
    runner = _RUNNERS / "distill.py"
    limit_s = section.max_seconds + request.timeout_s
    found = toolchain.call(where, runner, job, progress=_part(request.progress, _ASKED, _TRAINED), timeout_s=limit_s)
    request.progress(_TRAINED, "comparing the export with torch")
    metrics = _judge(request, chosen, answered, job, found, toolchain.describe(where))
    with disk_errors(f"writing {request.out}"):
        request.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(request.out, (request.work / "student.onnx").read_bytes(), mode=SHARED)
    request.progress(1.0, figures.summary(metrics))
    return Student(path=request.out, metrics=metrics)


def toolchain_for(kind: StudentKind, teacher_model: ToolchainModel | None, named: str) -> str:
    """Return the toolchain that trains a student.

    Args:
        named: the student's name, for the message.

    Raises:
        ConfigError: layers of a teacher that is only known by its answers.
    """
    if not isinstance(kind, Layers):
        return toolchain_of(kind)
    if teacher_model is None:
        raise ConfigError(
            f"distill.student: {named!r} takes layers of the teacher, which is only known by its answers; name a "
            "Hugging Face directory or a torch factory as the teacher"
        )
    return toolchain_of(teacher_model)


def _check_rows(request: Request, chosen: Rows) -> None:
    inputs = {
        spec.name: chosen.split.inputs[spec.name] for spec in request.teacher.inputs if spec.name in chosen.split.inputs
    }
    check_inputs(inputs, request.teacher.inputs)
    for spec in request.teacher.inputs:
        if spec.datatype == "BYTES":
            raise InvalidInput(
                f"input {spec.name!r} holds strings, which torch cannot learn from; put the tokenizer in front of the "
                "model (data.tokenizer)",
                field=f"inputs.{spec.name}",
            )


def _ask(request: Request, chosen: Rows) -> Answered:
    inputs = {spec.name: chosen.split.inputs[spec.name] for spec in request.teacher.inputs}
    report = _part(request.progress, 0.0, _ASKED)
    answered = request.cache.answers(request.teacher, inputs, request.work / "teacher.npy", report)
    if request.output_kind == "probabilities":
        _to_logits(answered.file)
    return answered


def _to_logits(file: Path) -> None:
    """Turn probabilities into their logarithms, which a softmax turns back, as ``penstock.policy.confidence`` does."""
    values = np.load(file, mmap_mode="r+", allow_pickle=False)
    if values.min() < 0 or abs(float(values[0].sum()) - 1) > 0.05:
        raise CompileError(
            "the teacher's output is said to hold probabilities, and its rows are none; set "
            'model.output_kind = "logits"'
        )
    values[...] = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    values.flush()


def _check_classes(chosen: Rows, answered: Answered) -> None:
    labels = chosen.split.labels
    if labels is None:
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InvalidInput(
            "distill: labels must be classes; a student of a classifier is made here", field="data.labels"
        )
    if int(labels.max()) >= answered.classes or int(labels.min()) < 0:
        raise InvalidInput(
            f"labels from {int(labels.min())} to {int(labels.max())}, but the teacher has classes 0 to "
            f"{answered.classes - 1}",
            field="data.labels",
        )


def _job(request: Request, chosen: Rows, answered: Answered, settled: Mapping[str, float]) -> dict[str, Any]:
    """Return the runner's job; ``key`` covers everything that decides the weights, and so when a checkpoint may be
    used.
    """
    section, teacher = request.section, request.teacher
    kind = student_of(section, request.base)
    settings = msgspec.to_builtins(section) | dict(settled)
    deciding = {
        name: value
        for name, value in settings.items()
        if name not in ("max_seconds", "checkpoint_s", "teacher", *LATER)
    }
    key = {
        "settings": deciding,
        "answers": answered.digest,
        "inputs": inputs_digest(chosen.split.inputs),
        "labels": None if chosen.split.labels is None else inputs_digest({"labels": chosen.split.labels}),
        "output": [teacher.output.name, teacher.output.datatype, request.output_kind],
        "code": [digest_of_file(_RUNNERS / name) for name in _CODE],
    }
    return {
        "key": digest_of(canonical_json(key)),
        "base": request.base,
        "student": as_job(kind),
        "teacher_model": None if request.teacher_model is None else as_job(request.teacher_model),
        "inputs": _written(request, chosen),
        "labels": _save(request.work / "labels.npy", chosen.split.labels),
        "train": _save(request.work / "train.npy", chosen.train),
        "validation": _save(request.work / "validation.npy", chosen.validation),
        "teacher": answered.file,
        "classes": answered.classes,
        "output": teacher.output.name,
        "output_kind": request.output_kind,
        "output_datatype": teacher.output.datatype,
        "settings": settings,
        "processors": toolchain.usable_processors(),
        "checkpoint": request.work / "checkpoint",
        "onnx": request.work / "exported.onnx",
        "said": request.work / "said.npy",
    }


def _written(request: Request, chosen: Rows) -> list[dict[str, Any]]:
    """Write inputs as memory-mappable files, in the teacher's order."""
    return [
        {
            "name": spec.name,
            "file": _save(request.work / f"input-{index}.npy", chosen.split.inputs[spec.name]),
            "free": [axis for axis, size in enumerate(spec.shape) if size == -1 or axis == 0],
        }
        for index, spec in enumerate(request.teacher.inputs)
    ]


def _save(path: Path, array: Array | None) -> Path | None:
    if array is None:
        return None
    with disk_errors(f"writing {path}"):
        np.save(path, array)
    return path


def _judge(
    request: Request,
    chosen: Rows,
    answered: Answered,
    job: Mapping[str, Any],
    found: Mapping[str, Any],
    versions: Mapping[str, str],
) -> Metrics:
    """Compare the export with torch, and account for the student.

    Raises:
        CompileError: they differ.
    """
    work, split = request.work, chosen.split
    model = files.read(work / "exported.onnx", field="the exported student")
    files.write(model, work / "student.onnx")
    said = np.load(work / "said.npy", allow_pickle=False)
    inputs = {spec.name: split.inputs[spec.name][chosen.validation] for spec in request.teacher.inputs}
    exported = _exported_answers(work / "student.onnx", inputs, request)
    largest = figures.difference(exported, said, request.output_kind)
    if not largest <= figures.PARITY_TOLERANCE:
        raise CompileError(
            f"the exported student answers otherwise than torch does: by up to {largest:.2g} of the largest logit, "
            f"{figures.PARITY_TOLERANCE:g} allowed. Does its forward depend on the size of the batch, or on values?"
        )
    labels = None if split.labels is None else split.labels[chosen.validation]
    teacher = np.load(answered.file, mmap_mode="r", allow_pickle=False)[chosen.validation]
    return Metrics(
        student=request.section.student,
        teacher=request.teacher_name,
        classes=answered.classes,
        parameters=found["parameters"],
        train_rows=len(chosen.train),
        validation_rows=len(chosen.validation),
        left_out=chosen.left_out,
        split=split.name,
        epochs=len(found["curve"]),
        best_epoch=found["best_epoch"],
        stop=found["stop"],
        validation=figures.judge(said, teacher, labels),
        largest_difference=float(f"{largest:.2g}"),
        batches=_PARITY_BATCHES,
        size_bytes=(work / "student.onnx").stat().st_size,
        digest=digest_of_file(work / "student.onnx"),
        curve=figures.decoded(found["curve"]),
        settings={**job["settings"], "threads": found["threads"]},
        versions=dict(versions),
        notes=(*_left_out(chosen), *answered.notes, *found["notes"], *_no_better(said, teacher, labels)),
    )


def _no_better(said: Array, teacher: Array, labels: Array | None) -> tuple[str, ...]:
    """Warn of a student that gives nearly one answer only: it has learned nothing, whatever its figures."""
    right = teacher.argmax(axis=1) if labels is None else labels
    most = np.bincount(right).max() / len(right)
    if float(np.mean(said.argmax(axis=1) == right)) > most:
        return ()
    return (
        f"the student is no better than always giving the commonest class ({wording.percent(most)}): try another "
        "learning rate (a "
        "tenth of it, if the loss jumps), more epochs, or a larger student",
    )


def _exported_answers(path: Path, inputs: Mapping[str, Array], request: Request) -> Array:
    """Return the exported student's answers to all rows, in batches of several sizes, from the runtime that will serve
    it.
    """
    engine = load_engine("onnx", path, EngineOptions(threads=1))
    name, rows = request.teacher.output.name, len(next(iter(inputs.values())))
    parts: list[Array] = []
    start = 0
    while start < rows:
        size = _PARITY_BATCHES[min(len(parts), len(_PARITY_BATCHES) - 1)]
        parts.append(engine.run({key: array[start : start + size] for key, array in inputs.items()}, [name])[name])
        start += size
    engine.close()
    return np.concatenate(parts)


def _left_out(chosen: Rows) -> tuple[str, ...]:
    if not chosen.left_out:
        return ()
    return (f"{chosen.left_out} rows were not learned from: tune, certify or test have them too",)


def write_metrics(student: Student, path: Path) -> None:
    """Write the account as indented JSON.

    Raises:
        StorageError: the disk is full or not writable.
    """
    account = msgspec.json.format(msgspec.json.encode(student.metrics, order="deterministic"), indent=1)
    write_atomically(path, account, mode=SHARED)


def _part(progress: Progress, low: float, high: float) -> Progress:
    """Return ``progress`` for a part of the whole."""
    return lambda share, note: progress(low + (high - low) * share, note)
