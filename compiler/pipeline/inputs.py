"""Every rung's model as ONNX and the examples, loaded and found to fit each other, or an error naming what does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler import data as datasets
from compiler import sources
from compiler.artifact import pack
from compiler.data import Dataset
from compiler.measure import quality
from compiler.pipeline.cached_steps import Model, Workshop, engine
from compiler.progress import Steps
from compiler.recipe.recipes import CLOUD, CloudSection, Recipe, Rung, RungSection
from compiler.recipe.source_section import SourceSection
from penstock import toolchain
from penstock.errors import CompileError, InvalidInput
from penstock.runtime import Engine
from penstock.wire.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A rung's model as it came: an ONNX file, and whether it is a neural network that passes may change."""

    model: Model
    is_neural: bool
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Checked inputs of a compilation.

    Attributes:
        sources: by role, the cloud's included. ``output``: name of the scored output.
        labels: names of the classes: the recipe's, else the model's own, else the data's; () for none.
        preprocessing: what becomes of raw data before it is an input; a certificate binds it.
    """

    recipe: Recipe
    sources: Mapping[str, Source]
    inputs: tuple[TensorSpec, ...]
    output: str
    labels: tuple[str, ...]
    data: Dataset
    preprocessing: dict[str, Any]

    @property
    def described(self) -> pack.Described:
        """What the artifact's variants will have in common."""
        return pack.Described(
            model=self.recipe.model, output=self.output, labels=self.labels, preprocessing=self.preprocessing
        )

    @property
    def cloud(self) -> Model:
        return self.sources[CLOUD].model


def load(shop: Workshop, steps: Steps, recipe: Recipe, *, smoke_rows: int | None = None) -> Ladder:
    """Read or export every model, read the data, train students, and check that all of it fits.

    Args:
        smoke_rows: cut every split down to so many rows.

    Raises:
        InvalidInput, CompileError, ConfigError: what does not fit, and what was expected.
    """
    found: dict[str, Source] = {}
    if recipe.cloud is not None:
        found[CLOUD] = _source(shop, steps, recipe, CLOUD, recipe.cloud)
    for rung in recipe.rungs:
        if not rung.section.distill:
            found[rung.role] = _source(shop, steps, recipe, rung.role, rung.section)
    if CLOUD not in found:  # the float model of the last rung answers for the cloud
        found[CLOUD] = found[recipe.rungs[-1].role]
    teacher = engine(found[CLOUD].model.path)
    output = _scored_output(recipe, teacher)
    classes = _classes(recipe, teacher, output)
    _check_pairs(recipe, found)
    labels = recipe.model.labels or tuple(found[CLOUD].facts.get("labels") or ())
    data = _data(steps, recipe, teacher.inputs, classes, labels, smoke_rows)
    for rung in recipe.rungs:
        if rung.section.distill:
            found[rung.role] = _student(shop, steps, recipe, rung, found[CLOUD].model, data, smoke_rows)
    _check_pairs(recipe, found)
    return Ladder(
        recipe=recipe,
        sources=found,
        inputs=teacher.inputs,
        output=output,
        labels=labels or data.class_names,
        data=data,
        preprocessing={**datasets.preprocessing(recipe.data, recipe.base, teacher.inputs), **recipe.preprocessing},
    )


def source_fingerprints(recipe: Recipe) -> dict[str, str]:
    """Content of every model that a recipe names, by role.

    Raises:
        InvalidInput: there is no such model.
    """
    named: dict[str, RungSection | CloudSection] = {rung.role: rung.section for rung in recipe.rungs}
    if recipe.cloud is not None:
        named[CLOUD] = recipe.cloud
    return {role: _fingerprint(role, section, recipe) for role, section in named.items()}


def toolchains_needed(recipe: Recipe) -> set[str]:
    """Names of the toolchains that export a recipe's models.

    Raises:
        InvalidInput: there is no such model.
    """
    named: dict[str, RungSection | CloudSection] = {
        rung.role: rung.section for rung in recipe.rungs if not rung.section.distill
    }
    if recipe.cloud is not None:
        named[CLOUD] = recipe.cloud
    found = {
        sources.toolchain_of(_detect(role, section.model, recipe.base, section.source), section.source)
        for role, section in named.items()
    }
    return found - {""}


def _fingerprint(role: str, section: RungSection | CloudSection, recipe: Recipe) -> str:
    if isinstance(section, RungSection) and section.distill:
        from compiler.passes import distill

        return distill.student_content(recipe, section.model)
    source = _detect(role, section.model, recipe.base, section.source)
    with _naming(role):
        return sources.fingerprint(source, section.source)


def export(
    shop: Workshop, steps: Steps, role: str, model: str, section: SourceSection, *, base: Path, seed: int
) -> Source:
    """One model as ONNX, kept by content.

    Raises:
        InvalidInput, ConfigError: there is no such model. CompileError, MissingToolchain: it cannot be exported.
    """
    source = _detect(role, model, base, section)

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del work
        with _naming(role):
            exported = sources.export(source, section, out, progress=doing.advance, seed=seed)
        return {
            "model": str(exported.model.relative_to(out)),
            "files": [str(path.relative_to(out)) for path in exported.files],
            "how": exported.how,
            "facts": exported.facts,
            "parity": exported.parity,
            "passthrough": exported.passthrough,
        }

    with steps(f"{role} model") as doing:
        needed = sources.toolchain_of(source, section)
        with _naming(role):
            content = sources.fingerprint(source, section)
        key = {
            "source": content,
            "section": section,
            "seed": seed,
            "toolchain": toolchain.describe(needed) if needed else {},
        }
        step = shop.step("export", key, produce, doing)
        facts = step.facts
        path = step.directory / facts["model"]
        named = {step.directory / name for name in facts["files"]} | set(step.directory.glob(f"{path.name}.data"))
        found = Model(path=path, content=step.content, how=facts["how"], files=tuple(sorted(named)))
        loaded = engine(path)
        _check_inputs(role, loaded.inputs)
        doing.note(f"{facts['how']}: {_listing(loaded.inputs)} -> {_listing(loaded.outputs)}")
    return Source(model=found, is_neural=not facts["passthrough"], facts=facts["facts"])


def _detect(role: str, model: str, base: Path, section: SourceSection) -> sources.Source:
    with _naming(role):
        return sources.detect(model, base, section)


@contextmanager
def _naming(role: str) -> Iterator[None]:
    """Errors about "model" say which rung's it is: a recipe has several."""
    try:
        yield
    except (CompileError, InvalidInput) as error:
        error.message = f"{role}.model: {error.message.removeprefix('model: ')}"
        error.args = (error.message,)
        if isinstance(error, InvalidInput):
            error.field = f"{role}.model"
        raise


def _source(shop: Workshop, steps: Steps, recipe: Recipe, role: str, section: RungSection | CloudSection) -> Source:
    return export(shop, steps, role, section.model, section.source, base=recipe.base, seed=recipe.seed)


def _data(
    steps: Steps,
    recipe: Recipe,
    inputs: tuple[TensorSpec, ...],
    classes: int | None,
    labels: tuple[str, ...],
    smoke_rows: int | None,
) -> Dataset:
    with steps("data") as doing:
        data = datasets.load(
            recipe.data,
            recipe.base,
            inputs,
            classes=classes,
            input_range=recipe.model.input_range,
            task=recipe.model.task,
            labels=labels,
            progress=lambda note: doing.advance(0.0, note),
        )
        if smoke_rows is not None:
            data = datasets.smoke(data, smoke_rows)
        doing.note("rows: " + ", ".join(f"{split.rows} {use}" for use, split in data.by_use().items()))
    return data


def _student(
    shop: Workshop, steps: Steps, recipe: Recipe, rung: Rung, teacher: Model, data: Dataset, smoke_rows: int | None
) -> Source:
    """A student trained by distillation, as the rung's model."""
    from compiler.passes import distill  # imports what training needs: only when a recipe asks for it

    job = distill.DistillJob(
        recipe=recipe,
        student=rung.section.model,
        teacher=teacher.path,
        content=teacher.content,
        data=data,
        smoke_rows=smoke_rows,
    )

    def produce(out: Path, work: Path) -> dict[str, Any]:
        student = distill.run(job, out, work, doing.advance)
        return {"how": f"distilled: {student.summary}"}

    with steps(f"{rung.role} student") as doing:
        step = shop.step("distill", distill.key(job), produce, doing)
        doing.note(step.facts["how"])
    model = Model(path=step.directory / distill.STUDENT_FILE, content=step.content, how=step.facts["how"])
    return Source(model=model, is_neural=True, facts=step.facts)


def _scored_output(recipe: Recipe, model: Engine) -> str:
    """The output that is scored: the one the recipe names, else the only one."""
    names = [spec.name for spec in model.outputs]
    if recipe.model.output in names:
        return recipe.model.output
    if not recipe.model.output and len(names) == 1:
        return names[0]
    wanted = f"no output {recipe.model.output!r}" if recipe.model.output else "several outputs and none named"
    raise CompileError(f"model.output: {wanted}; the model has {', '.join(names)}")


def _check_inputs(role: str, inputs: tuple[TensorSpec, ...]) -> None:
    """
    Raises:
        CompileError: an input that cannot be served.
    """
    for spec in inputs:
        if not spec.shape or spec.shape[0] != -1:
            raise CompileError(
                f"{role}.model: input {spec.name!r} has shape {list(spec.shape)}: export it with a free first "
                "dimension (the batch)"
            )
        if spec.datatype == "BYTES":
            raise CompileError(
                f"{role}.model: input {spec.name!r} holds strings; put the tokenizer in front of the model"
            )


def _classes(recipe: Recipe, model: Engine, output: str) -> int | None:
    """The number of classes of a classification; None for other tasks.

    Raises:
        CompileError: an output or a shape that cannot be served.
    """
    (scored,) = (spec for spec in model.outputs if spec.name == output)
    quality.check_output(recipe.model.task, scored)
    if recipe.model.task != "classification":
        return None
    classes = scored.shape[1]
    if recipe.model.labels and len(recipe.model.labels) != classes:
        raise CompileError(f"model.labels: {len(recipe.model.labels)} names, but the model has {classes} classes")
    return classes


def _check_pairs(recipe: Recipe, found: Mapping[str, Source]) -> None:
    """
    Raises:
        CompileError: where a rung and the cloud differ in what they take or give.
    """
    cloud = engine(found[CLOUD].model.path)
    for role in (rung.role for rung in recipe.rungs if rung.role in found):
        edge = engine(found[role].model.path)
        for what, ours, theirs in (("inputs", edge.inputs, cloud.inputs), ("outputs", edge.outputs, cloud.outputs)):
            if ours != theirs:
                raise CompileError(
                    f"{role}.model and cloud.model disagree on {what}: {_listing(ours)} and {_listing(theirs)}; the "
                    "cloud could not answer for the edge"
                )


def _listing(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs)
