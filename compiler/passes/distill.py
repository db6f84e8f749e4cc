"""A recipe's student, made before every other pass: the model of a rung that says ``distill = true``.

Differs from the passes of ``compiler.passes.table`` in what it is given: a teacher and examples with labels, and no
model to change. Decides what a student depends on (:func:`key`); the work is ``compiler.distill``.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compiler import sources
from compiler.data import Dataset, Split
from compiler.distill import prepare
from compiler.distill import rows as learning
from compiler.distill.cache import AnswerCache
from compiler.distill.student import Request, Student, make_student, toolchain_for, write_metrics
from compiler.distill.teacher import LocalTeacher, Teacher, local_teacher
from compiler.distill.toolchain_models import content_of
from compiler.progress import Progress
from compiler.recipe.distill_section import LATER, DistillSection, learning_rate, settled, student_of
from compiler.recipe.recipes import Recipe
from penstock import toolchain
from penstock.wire.tensors import TensorSpec

STUDENT_FILE, METRICS_FILE = "student.onnx", "student.json"
_SMOKE_EPOCHS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillJob:
    """A student to be made.

    Attributes:
        student: the rung's ``model``, which says what the student looks like.
        teacher: the cloud's model as ONNX.
        content: its digest.
        data: the recipe's examples, as they were loaded for the other steps.
        smoke_rows: train one epoch on so many rows; None trains on all, to the end.
    """

    recipe: Recipe
    student: str
    teacher: Path
    content: str
    data: Dataset
    smoke_rows: int | None = None

    @property
    def section(self) -> DistillSection:
        """Return the table [distill] as it is used here.

        Raises:
            ConfigError: what is wrong with it.
        """
        smoke = {"epochs": _SMOKE_EPOCHS, "quantization_epochs": _SMOKE_EPOCHS}
        flags = None if self.smoke_rows is None else smoke
        return settled(self.recipe.distill, student=self.student, flags=flags)


def key(job: DistillJob) -> dict[str, Any]:
    """Return everything that a student depends on, as plain JSON.

    Raises:
        ConfigError, InvalidInput: what is wrong with the recipe or the data. MissingToolchain.
    """
    train, held_out = _splits(job, _cloud(job).inputs)
    kind = student_of(job.section, job.recipe.base)
    taken_from = prepare.framework_model(_named_teacher(job), job.recipe.base)
    return {
        "section": {name: value for name, value in msgspec.to_builtins(job.section).items() if name not in LATER},
        "teacher": [job.content, _own_teacher(job)],
        "teacher_model": "" if taken_from is None else content_of(taken_from),
        "student": content_of(kind),
        "output": [job.recipe.model.output, job.recipe.model.kind],
        "train": train.digest,
        "held_out": [split.digest for split in held_out],
        "toolchain": toolchain.describe(toolchain_for(kind, taken_from, job.section.student)),
    }


def student_content(recipe: Recipe, student: str) -> str:
    """Return what is known of a student before it is trained: the content of its factory or configuration.

    Raises:
        ConfigError, InvalidInput: there is no such student, or the table [distill] is wrong.
    """
    return content_of(student_of(settled(recipe.distill, student=student), recipe.base))


def run(job: DistillJob, out: Path, work: Path, progress: Progress) -> Student:
    """Make the student in ``out``, with its account beside it.

    Args:
        work: outlives an interruption; the same job continues from what is in it.

    Raises:
        As :func:`compiler.distill.student.make_student`.
    """
    with _opened(job, work, progress) as teacher:
        train, held_out = _splits(job, teacher.inputs)
        request = Request(
            section=job.section,
            base=job.recipe.base,
            teacher=teacher,
            teacher_name=_named_teacher(job),
            teacher_model=prepare.framework_model(_named_teacher(job), job.recipe.base),
            output_kind=job.recipe.model.kind,
            train=train,
            held_out=held_out,
            cache=AnswerCache(prepare.answers_root()),
            work=work,
            out=out / STUDENT_FILE,
            progress=progress,
        )
        student = make_student(request)
    write_metrics(student, out / METRICS_FILE)
    return student


def quantization_aware(job: DistillJob) -> tuple[Split, dict[str, Any]]:
    """Return what a student is fine-tuned on with its rounding: the rows that it learned from, and options of the pass
    ``int8-qat``, all but the output and those of ``int8``.

    Raises:
        ConfigError, InvalidInput, CalibrationError: what is wrong with the recipe or the data.
    """
    section, base = job.section, job.recipe.base
    kind = student_of(section, base)
    train, held_out = _splits(job, _cloud(job).inputs)
    chosen = learning.choose(train, held_out, validation=section.validation, seed=section.seed)
    same = ("batch_size", "temperature", "validation", "seed", "max_seconds", "checkpoint_s")
    teacher_model = prepare.framework_model(_named_teacher(job), base)
    return chosen.split, {
        **{name: getattr(section, name) for name in same},
        "toolchain": toolchain_for(kind, teacher_model, section.student),
        "epochs": section.quantization_epochs,
        "lr": learning_rate(section, kind),
        "threads": section.threads or 1,
    }


def _opened(job: DistillJob, work: Path, progress: Progress) -> AbstractContextManager[Teacher]:
    if not job.section.teacher:
        return nullcontext(_cloud(job))
    token = os.environ.get("PENSTOCK_TOKEN", "")
    return prepare.opened(job.recipe, job.section, work=work, token=token, progress=progress)


def _cloud(job: DistillJob) -> LocalTeacher:
    return local_teacher(job.teacher, content=job.content, output=job.recipe.model.output)


def _own_teacher(job: DistillJob) -> str:
    """Return what is known of the teacher that [distill] names: a core's model by its name alone, anything else by
    content.
    """
    named = job.section.teacher
    return named if not named or "://" in named else sources.fingerprint(sources.detect(named, job.recipe.base))


def _named_teacher(job: DistillJob) -> str:
    return job.section.teacher or (job.recipe.cloud.model if job.recipe.cloud else str(job.teacher.name))


def _splits(job: DistillJob, inputs: tuple[TensorSpec, ...]) -> tuple[Split, tuple[Split, ...]]:
    split, names, loaded = job.section.split, job.recipe.data.splits, job.data
    if split and split != names.fit:
        loaded = prepare.with_split(job.recipe, split, inputs, classes=None)
        if job.smoke_rows is not None:
            loaded = loaded.thinned(job.smoke_rows)
    return loaded.ranges, prepare.held_out(loaded)
