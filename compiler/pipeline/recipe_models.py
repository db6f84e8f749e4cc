"""The models that a recipe names, as ONNX: exported or trained by distillation, each kept by content.

Owns that errors say which of a recipe's models they are about. What kind of source is exported how is
``compiler.sources``; whether the models fit each other is ``compiler.pipeline.arrays``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compiler import sources
from compiler.data import Dataset, Split, buckets, table
from compiler.data.parts import Request, silent
from compiler.measure.first_run import Limits
from compiler.pipeline.cached_steps import CachedSteps, Model, as_it_is, engine
from compiler.recipe.data_section import kind_of
from compiler.recipe.recipes import CLOUD, CloudSection, Recipe, Rung, RungSection
from compiler.recipe.shapes_section import Dimension, Shapes
from compiler.recipe.source_section import SourceSection
from compiler.sources.exported import Exported
from penstock import toolchain
from penstock.errors import CompileError, Internal, InvalidInput
from penstock.wire.tensors import TensorSpec, listed, listing

if TYPE_CHECKING:
    from compiler.passes.distill import DistillJob

_DIMENSIONS = "dimensions"
_Dimensions = tuple[Dimension, ...]
NO_LIMITS_SAID = Limits()
"""What a model may take where no recipe says it."""


def named(recipe: Recipe, *, students: bool = True) -> dict[str, RungSection | CloudSection]:
    """List the sections of a recipe that name a model, by role, the device first.

    Args:
        students: whether to include those that are trained by distillation.
    """
    found: dict[str, RungSection | CloudSection] = {
        rung.role: rung.section for rung in recipe.rungs if students or not rung.section.distill
    }
    return found if recipe.cloud is None else {**found, CLOUD: recipe.cloud}


def limits_of(recipe: Recipe) -> Limits:
    """Return what a recipe's models may take to answer their first row."""
    return Limits(seconds=recipe.model.max_run_s, memory_bytes=recipe.model.max_run_bytes)


def export_all(steps: CachedSteps, recipe: Recipe) -> dict[str, Model]:
    """Export every model of a recipe that is no student, the cloud's first: its inputs are what examples are read for.

    Raises:
        As :func:`export`.
    """
    found = named(recipe, students=False)
    return {
        role: export(
            steps,
            role,
            found[role].model,
            found[role].source,
            base=recipe.base,
            seed=recipe.seed,
            shapes=recipe.model.shapes,
            limits=limits_of(recipe),
        )
        for role in sorted(found, key=lambda role: role != CLOUD)
    }


def run_all_first(steps: CachedSteps, recipe: Recipe, models: Mapping[str, Model], data: Dataset) -> None:
    """Let each model answer its first example in a child, at every size, before any of them runs in this process.

    Raises:
        CompileError: one takes more time or memory than the recipe allows, or refuses a size that it lists.
        InvalidInput: examples of the sizes that it lists are more than the recipe allows.
    """
    for split in (data.ranges, data.tune):
        buckets.check_room(split, recipe.data.limits.max_bytes)
    examples = data.ranges
    limits, row = limits_of(recipe), examples.take(slice(0, 1), name=examples.name)
    with steps("first run") as doing:
        for role, model in models.items():
            steps.run_first(model, examples, doing, limits=limits, what=f"{role}.model")
            for label, other in buckets.others(row):
                steps.run_first(model, other, doing, limits=limits, what=f"{role}.model at {label}")
                try:
                    engine(model.path).run(other.inputs)
                except (InvalidInput, Internal) as error:
                    raise CompileError(
                        f"{role}.model: refuses {label}, which model.shapes lists: {error.message}"
                    ) from error


def source_fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return the content of every model that a recipe names, by role.

    Raises:
        InvalidInput: there is no such model.
    """
    return {role: _fingerprint(role, section, recipe) for role, section in named(recipe).items()}


def toolchains_needed(recipe: Recipe) -> set[str]:
    """Name the toolchains that export a recipe's models.

    Raises:
        InvalidInput: there is no such model.
    """
    found = {
        sources.toolchain_of(_detect(role, section.model, recipe.base, section.source), section.source)
        for role, section in named(recipe, students=False).items()
    }
    return found - {""}


def with_columns(recipe: Recipe, models: Mapping[str, Model], inputs: Sequence[TensorSpec]) -> Recipe:
    """Return the recipe with the columns that the models themselves were fitted on, by name and in their order.

    Raises:
        CompileError: two models were fitted on different columns, or in different orders: they get the same input.
        InvalidInput: the table has others.
    """
    known: dict[str, list[str]] = {}
    by: dict[str, str] = {}
    for role, model in models.items():
        for name, columns in (model.facts.get("columns") or {}).items():
            if known.setdefault(name, columns) != columns:
                raise CompileError(
                    f"the models of {by[name]} and {role} were fitted on different columns for input {name}, or in "
                    f"another order: {', '.join(known[name][:20])} and {', '.join(columns[:20])}. Fit both on the same"
                )
            by.setdefault(name, role)
    if not known:
        return recipe
    if kind_of(recipe.data.source) not in ("csv", "parquet"):
        return replace(recipe, preprocessing={"columns": known, **recipe.preprocessing})
    request = Request(section=recipe.data, base=recipe.base, inputs=inputs, wants_labels=False, progress=silent)
    return replace(recipe, data=msgspec.structs.replace(recipe.data, columns=table.matched(request, known)))


def _fingerprint(role: str, section: RungSection | CloudSection, recipe: Recipe) -> str:
    if isinstance(section, RungSection) and section.distill:
        from compiler.passes import distill

        return distill.student_content(recipe, section.model)
    source = _detect(role, section.model, recipe.base, section.source)
    with _naming(role):
        return sources.fingerprint(source, section.source)


def export(
    steps: CachedSteps,
    role: str,
    model: str,
    section: SourceSection,
    *,
    base: Path,
    seed: int,
    shapes: Shapes | None = None,
    limits: Limits = NO_LIMITS_SAID,
) -> Model:
    """Export one model as ONNX, its sizes fixed as the recipe says, and a batch that is frozen freed where that works.

    Raises:
        InvalidInput, ConfigError: there is no such model. CompileError, MissingToolchain: it cannot be exported.
    """
    source = _detect(role, model, base, section)

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del work
        with _naming(role):
            exported = sources.export(source, section, out, progress=doing.advance, seed=seed)
            steps.first_runs.run(exported.model, None, limits, what="model")
            said, dimensions = _reshaped(exported, shapes or {}, seed)
        return {
            "model": str(exported.model.relative_to(out)),
            "files": [str(path.relative_to(out)) for path in exported.files],
            "how": exported.how + said,
            "facts": {**exported.facts, **({_DIMENSIONS: msgspec.to_builtins(dimensions)} if dimensions else {})},
            "parity": exported.parity,
            "precision": "none" if exported.passthrough else _precision(exported.model),
        }

    with steps(f"{role} model") as doing:
        needed = sources.toolchain_of(source, section)
        with _naming(role):
            content = sources.fingerprint(source, section)
        key = {
            "source": content,
            "section": section,
            "shapes": dict(shapes or {}),
            "seed": seed,
            "toolchain": toolchain.describe(needed) if needed else {},
        }
        step = steps.keep("export", key, produce, doing)
        facts = step.facts
        path = step.directory / facts["model"]
        beside = {step.directory / name for name in facts["files"]} | set(step.directory.glob(f"{path.name}.data"))
        loaded = as_it_is(path)
        _check_inputs(role, loaded.inputs)
        doing.note(f"{facts['how']}: {listing(loaded.inputs)} -> {listing(loaded.outputs)}")
    return Model(
        path=path,
        content=step.content,
        how=facts["how"],
        files=tuple(sorted(beside)),
        facts=facts["facts"],
        precision=facts["precision"],
    )


def _reshaped(exported: Exported, shapes: Shapes, seed: int) -> tuple[str, tuple[Dimension, ...]]:
    """Free the batch of an export and fix its sizes; return what became of it for people, and what has a few sizes."""
    from compiler.graph import broken_weights, files, interface  # imports onnx

    model, said = files.read(exported.model, field="model"), ""
    broken_weights.check(model)
    frozen = interface.frozen_batch(model)
    if frozen:
        freed = interface.with_free_batch(model, seed=seed)
        said = f", frozen to {frozen} row{'s' * (frozen > 1)} a call" if freed is None else ", its frozen batch freed"
        model = freed or model
    dimensions = interface.with_shapes(model, shapes)
    if shapes or said:
        files.write(model, exported.model)
    fixed = len(shapes) - len(dimensions)
    said += f", {fixed} sizes fixed" if fixed else ""
    return said + "".join(f", {one.name} of {listed(one.sizes)}" for one in dimensions), dimensions


def dimensions_of(models: Mapping[str, Model]) -> tuple[Dimension, ...]:
    """Return the dimensions that all models are made for at several sizes.

    Raises:
        CompileError: two models have them in different places.
    """
    found = {role: msgspec.convert(one.facts.get(_DIMENSIONS, ()), _Dimensions) for role, one in models.items()}
    for role, dimensions in found.items():
        if dimensions != found[CLOUD]:
            raise CompileError(
                f"{role}.model and cloud.model have dimensions of model.shapes in different places, so that the cloud "
                "could not answer for it; name them alike"
            )
    return found[CLOUD]


def _precision(path: Path) -> str:
    from compiler.graph import coverage, files  # imports onnx

    return coverage.precision_of(files.read(path, field="model"))


def _detect(role: str, model: str, base: Path, section: SourceSection) -> sources.Source:
    with _naming(role):
        return sources.detect(model, base, section)


@contextmanager
def _naming(role: str) -> Iterator[None]:
    """Make errors about "model" say which rung's it is: a recipe has several."""
    try:
        yield
    except (CompileError, InvalidInput) as error:
        error.message = f"{role}.model: {error.message.removeprefix('model: ')}"
        error.args = (error.message,)
        if isinstance(error, InvalidInput):
            error.field = f"{role}.model"
        raise


def train_student(
    steps: CachedSteps, recipe: Recipe, rung: Rung, teacher: Model, data: Dataset, smoke_rows: int | None
) -> Model:
    """Train a rung's model by distillation from the cloud's.

    Raises:
        CompileError, ConfigError, InvalidInput, MissingToolchain: from training.
    """
    from compiler.passes import distill  # imports what training needs: only when a recipe asks for it

    job = _distill_job(recipe, rung, teacher, data, smoke_rows)

    def produce(out: Path, work: Path) -> dict[str, Any]:
        student = distill.run(job, out, work, doing.advance)
        return {"how": f"distilled: {student.summary}"}

    with steps(f"{rung.role} student") as doing:
        step = steps.keep("distill", distill.key(job), produce, doing)
        doing.note(step.facts["how"])
    return Model(path=step.directory / distill.STUDENT_FILE, content=step.content, how=step.facts["how"])


def quantization_aware(
    recipe: Recipe, rung: Rung, teacher: Model, data: Dataset, smoke_rows: int | None
) -> tuple[Split, dict[str, Any]] | None:
    """Return the rows and options with which a rung's student is fine-tuned for integers; None where it is not.

    Raises:
        ConfigError, InvalidInput, CalibrationError: what is wrong with the recipe or the data.
    """
    if not rung.section.distill or recipe.distill is None or recipe.distill.quantization_aware == "never":
        return None
    from compiler.passes import distill

    return distill.quantization_aware(_distill_job(recipe, rung, teacher, data, smoke_rows))


def _distill_job(recipe: Recipe, rung: Rung, teacher: Model, data: Dataset, smoke_rows: int | None) -> DistillJob:
    from compiler.passes import distill

    return distill.DistillJob(
        recipe=recipe,
        student=rung.section.model,
        teacher=teacher.path,
        content=teacher.content,
        data=data,
        smoke_rows=smoke_rows,
    )


def _check_inputs(role: str, inputs: tuple[TensorSpec, ...]) -> None:
    """Check that the inputs of a model can be served: with rows, or one example a call.

    Raises:
        CompileError: every call takes the same number of examples, and more than one.
    """
    firsts = {spec.shape[0] if spec.shape else -1 for spec in inputs}
    if len(firsts) == 1 and (frozen := firsts.pop()) > 1:
        raise CompileError(
            f"{role}.model: takes exactly {frozen} rows a call ({listing(inputs)}), and does not work for other "
            "numbers: export it with a free first dimension (the batch), or with one of 1"
        )
