"""One compilation from recipe to artifact: load, make and gate candidates for every target, certify, pack, publish.

Composes the other modules and owns their order, which is part of the promise: everything that is fitted or can refuse a
candidate comes before the one look at the certifying split, and nothing appears at the destination before everything
has succeeded. The finished artifact is itself a step kept by content: an unchanged recipe only copies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compiler import data as datasets
from compiler.artifact import evaluation as evaluation_document
from compiler.artifact import pack, report
from compiler.artifact.evaluation import Evaluation, SplitFigures, TargetEvaluation
from compiler.cache.steps import StepCache
from compiler.measure import quality
from compiler.passes import table
from compiler.pipeline import candidates, cascade, inputs, language_figures, language_models, lock, variants
from compiler.pipeline.cached_steps import Workshop, engine, fingerprint, this_machine
from compiler.pipeline.candidates import Setting
from compiler.pipeline.cascade import Cascade
from compiler.pipeline.inputs import Ladder
from compiler.pipeline.variants import Shipped, Tested
from compiler.progress import Doing, Steps, Watcher
from compiler.recipe import recipes, targets
from compiler.recipe.recipes import CLOUD, Recipe
from compiler.sources import SourceSection
from penstock import toolchain
from penstock.artifact import manifests
from penstock.artifact.layout import Layout, VariantDraft, variant_digest
from penstock.errors import ConfigError

SMOKE_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a compilation produced. ``was_kept``: nothing had changed since it was compiled before."""

    reference: str
    digest: str
    directory: Path
    evaluation: Evaluation
    was_kept: bool


def compile_recipe(
    recipe: Recipe,
    out: Path,
    *,
    cache: StepCache,
    watcher: Watcher,
    require_certificate: bool = True,
    finish: Callable[[Path], None] | None = None,
) -> Compiled:
    """Compile and publish at ``out``, or raise and leave ``out`` as it was.

    Args:
        require_certificate: False packs without one when certification is refused.
        finish: called with the finished directory just before it is published: signs it.

    Raises:
        InvalidInput, CompileError: models or data are wrong. GateRefused: no candidate keeps the quality budget.
        CalibrationError: certification refused, with the samples needed. Conflict: ``out`` holds something else.
        StorageError: the disk said no.
    """
    out = out.resolve()
    pack.check_destination(out)
    steps, shop = Steps(watcher), Workshop(cache)

    def produce(directory: Path, work: Path) -> dict[str, Any]:
        del work
        _write(recipe, directory, shop, steps, require_certificate=require_certificate)
        return {}

    key = {**_key(recipe), "require_certificate": require_certificate}
    whole = Doing(watcher)
    step = shop.step("artifact", key, produce, whole)
    with pack.workspace(out) as scratch, steps("publish") as doing:
        pack.publish(step.directory, out, scratch, finish=finish)
        doing.note(str(out))
    layout = Layout(out)
    return Compiled(
        reference=recipe.reference,
        digest=layout.digest,
        directory=out,
        evaluation=evaluation_document.decode((out / pack.EVALUATION_FILE).read_bytes()),
        was_kept=step.was_cached,
    )


def smoke(recipe: Recipe, scratch: Path, *, cache: StepCache, watcher: Watcher) -> Evaluation:
    """The whole recipe on few samples and one candidate a precision, to find mistakes in seconds; publishes nothing.

    Raises:
        As :func:`compile_recipe`, but for refusals: too few samples are the point.
    """
    shop, steps = Workshop(cache), Steps(watcher)
    layout = _write(recipe, scratch, shop, steps, require_certificate=False, smoke_rows=SMOKE_ROWS)
    return evaluation_document.decode(layout.blobs.read(layout.referrers(manifests.EVALUATION)[-1].content.digest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What a command line says instead of a recipe."""

    data: str
    target: str | None = None
    precisions: tuple[str, ...] = ()
    task: str | None = None
    max_harm: float | None = None


def recipe_of_flags(model: str, base: Path, flags: Flags, *, cache: StepCache, watcher: Watcher) -> Recipe:
    """The recipe of a compilation without one: the model is exported to see its inputs, the data are guessed from them.

    Raises:
        InvalidInput, ConfigError, CompileError: no such model or data, or what they are for cannot be guessed.
    """
    source = inputs.export(Workshop(cache), Steps(watcher), "edge", model, SourceSection(), base=base, seed=0)
    examples = datasets.infer(flags.data, engine(source.model.path).inputs)
    return recipes.of_model(
        model,
        examples,
        base=base,
        target=flags.target or targets.HOST,
        precisions=flags.precisions,
        task=flags.task,
        max_harm=flags.max_harm,
    )


def _key(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the artifact: the recipe without its place, the content it names, this machine."""
    plain = {
        "model": recipe.model,
        "rungs": [(rung.role, rung.section) for rung in recipe.rungs],
        "cloud": recipe.cloud,
        "data": recipe.data,
        "quality": recipe.quality,
        "certificate": recipe.certificate,
        "distill": recipe.distill,
        "generation": recipe.generation,
        "preprocessing": recipe.preprocessing,
        "seed": recipe.seed,
    }
    return {
        "recipe": msgspec.to_builtins(plain),
        "sources": inputs.source_fingerprints(recipe),
        "examples": examples_fingerprint(recipe),
        "toolchains": _toolchains(recipe),
        "machine": fingerprint(),
    }


def _toolchains(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Versions of what exporters and engine builders of this recipe are.

    Raises:
        MissingToolchain: one that is needed is not installed.
    """
    engines = {targets.resolve(name).engine for rung in recipe.rungs for name in rung.section.targets}
    needed = inputs.toolchains_needed(recipe) | (engines & {"tensorrt", "tensorrt-rtx"})
    return {name: toolchain.describe(name) for name in sorted(needed)}


def examples_fingerprint(recipe: Recipe) -> str:
    if recipe.model.task == "generation":
        return language_models.examples_fingerprint(recipe)
    return datasets.fingerprint(recipe.data, recipe.base)


def _write(
    recipe: Recipe,
    directory: Path,
    shop: Workshop,
    steps: Steps,
    *,
    require_certificate: bool,
    smoke_rows: int | None = None,
) -> Layout:
    """Everything, from models to an artifact in ``directory``."""
    check_passes(recipe)
    how = _generated if recipe.model.task == "generation" else _classified
    drafts, cascades, evaluation = how(recipe, directory, shop, steps, require_certificate, smoke_rows)
    with steps("pack") as doing:
        layout = pack.write(
            directory,
            drafts,
            [item.certificate for item in cascades if item.certificate is not None],
            [
                *(pack.evidence(item.evidence) for item in cascades if item.evidence),
                *pack.documents(
                    lock=lock.encode(recipe, shop.taken),
                    evaluation=evaluation_document.encode(evaluation),
                    report=report.render(evaluation),
                ),
            ],
            tag=recipe.model.version,
        )
        doing.note(f"{recipe.reference} {layout.digest}")
    return layout


def check_passes(recipe: Recipe) -> None:
    """
    Raises:
        ConfigError: no such pass, or options that it does not have: said before the first step, not at that pass.
    """
    for rung in recipe.rungs:
        for name, options in rung.section.passes.items():
            try:
                table.find(name).check(options)
            except ConfigError as error:
                raise ConfigError(f"{rung.role}: {error.message}") from error


def _classified(
    recipe: Recipe, directory: Path, shop: Workshop, steps: Steps, require_certificate: bool, smoke_rows: int | None
) -> tuple[list[VariantDraft], list[Cascade], Evaluation]:
    """Models that answer with numbers: classifiers with a cascade, regressions and embeddings without."""
    loaded = inputs.load(shop, steps, recipe, smoke_rows=smoke_rows)
    cloud = variants.cloud_draft(loaded)
    shipped = [
        variants.ship(shop, steps, loaded, setting, candidates.build(shop, steps, setting))
        for setting in _settings(loaded, smoke=smoke_rows is not None)
    ]
    cascades = [
        cascade.build(shop, steps, loaded, item, cloud, directory, require_certificate=require_certificate)
        if recipe.model.task == "classification" and item.built.target.runs_here
        else None
        for item in shipped
    ]
    evaluation = _evaluation(shop, steps, loaded, shipped, cloud, cascades, directory)
    drafts = [*(item.draft for item in shipped), cloud]
    return drafts, [item for item in cascades if item is not None], evaluation


def _generated(
    recipe: Recipe, directory: Path, shop: Workshop, steps: Steps, require_certificate: bool, smoke_rows: int | None
) -> tuple[list[VariantDraft], list[Cascade], Evaluation]:
    """Language models."""
    built = language_models.build(shop, steps, recipe, smoke=smoke_rows is not None)
    found = [
        language_models.certify(shop, steps, built, item, directory, require_certificate=require_certificate)
        for item in built.chosen
    ]
    evaluation = Evaluation(
        model=recipe.model.name,
        version=recipe.model.version,
        task=recipe.model.task,
        machine=this_machine(),
        splits={use: SplitFigures(rows=len(s.rows), digest=s.digest) for use, s in built.sets.items()},
        sources={rung.role: rung.section.model for rung in recipe.rungs},
        targets=tuple(target for _, target in found),
        cloud=language_figures.cloud_figures(built, variant_digest(built.cloud_draft, directory)),
        generation=language_figures.figures(built),
    )
    drafts = [*(item.draft for item in built.chosen), built.cloud_draft]
    return drafts, [item for item, _ in found], evaluation


def _settings(loaded: Ladder, *, smoke: bool) -> Iterator[Setting]:
    """Every rung on every target, device first."""
    for rung in loaded.recipe.rungs:
        source = loaded.sources[rung.role]
        for name in rung.section.targets:
            yield Setting(
                recipe=loaded.recipe,
                rung=rung,
                target=targets.resolve(name),
                source=source.model,
                is_neural=source.is_neural,
                output=loaded.output,
                data=loaded.data,
                smoke=smoke,
            )


def _evaluation(
    shop: Workshop,
    steps: Steps,
    loaded: Ladder,
    shipped: Sequence[Shipped],
    cloud: VariantDraft,
    cascades: Sequence[Cascade | None],
    directory: Path,
) -> Evaluation:
    """Figures on the test split, and everything that was found on the way."""
    recipe, data = loaded.recipe, loaded.data
    with steps("test") as doing:
        tested = Tested(shop, loaded, doing)
        whole = tested.figures(
            loaded.cloud,
            role=CLOUD,
            target=pack.CLOUD_TARGET,
            precision=cloud.spec.precision,
            digest=variant_digest(cloud, directory),
            size_bytes=variants.draft_size(cloud),
            speed=shop.speeds({CLOUD: loaded.cloud}, data.tune, doing)[CLOUD],
        )
        evaluated = tuple(
            _target_evaluation(tested, item, found, variant_digest(item.draft, directory))
            for item, found in zip(shipped, cascades, strict=True)
        )
        doing.note(f"{evaluated[0].metric} {whole.quality.value:.2%} (cloud)")
    return Evaluation(
        model=recipe.model.name,
        version=recipe.model.version,
        task=recipe.model.task,
        machine=this_machine(),
        splits={use: SplitFigures(rows=split.rows, digest=split.digest) for use, split in data.by_use().items()},
        sources={role: source.model.how for role, source in loaded.sources.items()},
        targets=evaluated,
        cloud=whole,
    )


def _target_evaluation(tested: Tested, item: Shipped, found: Cascade | None, digest: str) -> TargetEvaluation:
    setting, built = item.setting, item.built
    role, target = setting.rung.role, built.target
    parent, chosen = built.parent, built.chosen
    assert parent.model is not None, "the parent was made"
    not_measured = "" if target.runs_here else f"this machine cannot run {target.name}: certify it on such a device"
    return TargetEvaluation(
        role=role,
        target=target.name,
        objective=setting.rung.section.objective,
        metric=quality.metric_name(setting.recipe.model.task, has_labels=setting.data.test.labels is not None),
        max_drop=setting.recipe.quality.max_accuracy_drop,
        parent=parent.trial.name,
        chosen=chosen.trial.name,
        candidates=built.candidates,
        sensitivity=built.sensitivity,
        parent_test=tested.figures(
            parent.model,
            role=role,
            target=target.name,
            precision=parent.trial.precision,
            digest="",
            size_bytes=parent.model.size_bytes,
            speed=parent.speed,
        ),
        variant=tested.figures(
            item.graph,
            role=role,
            target=target.name,
            precision=chosen.trial.precision,
            digest=digest,
            size_bytes=variants.draft_size(item.draft),
            speed=chosen.speed,
        ),
        cascade=None if found is None else found.evaluation,
        not_measured=not_measured,
    )
