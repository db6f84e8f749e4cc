"""One compilation from recipe to artifact, the same for every family of models.

    load -> for every rung and target: candidates -> choose -> draft -> for each: certify -> evaluate -> pack -> publish

Owns this order, which is part of the promise: everything that is chosen or can refuse a candidate comes before the one
look at the certifying split, and nothing appears at the destination before everything has succeeded. What differs
between kinds of models is behind ``compiler.pipeline.family.Family``. The finished artifact is itself a step kept by
content: an unchanged recipe only copies it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from compiler.artifact import evaluation, pack, report
from compiler.artifact.evaluation import Evaluation, TargetEvaluation, VariantFigures
from compiler.cache.steps import StepCache
from compiler.measure import quality
from compiler.passes import table
from compiler.pipeline import candidates, cascade, judging, lock, recipe_models
from compiler.pipeline.arrays import Arrays
from compiler.pipeline.cached_steps import CachedSteps, machine_facts, this_machine
from compiler.pipeline.candidates import Candidate, Chosen, Goal
from compiler.pipeline.cascade import Cascade, Claim
from compiler.pipeline.family import Family, Tested
from compiler.pipeline.language import Language
from compiler.progress import Doing, Watcher
from compiler.recipe import certificate_section, targets
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.choices import Task
from compiler.recipe.recipes import CLOUD, Recipe
from penstock import toolchain, wording
from penstock.artifact import manifests
from penstock.artifact.certificates import Subject
from penstock.artifact.layout import Layout, VariantDraft, variant_digest
from penstock.errors import ConfigError
from penstock.policy.confidence import PROBE
from penstock.runtime import not_served

FAMILIES: Mapping[Task, type[Family]] = {
    **dict.fromkeys(quality.TASKS, Arrays),
    "generation": Language,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a compilation produced.

    Attributes:
        reference: ``name:version``.
        digest: of the artifact.
        directory: where it was published.
        was_kept: nothing had changed since it was compiled before.
    """

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
    budget_s: float | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Compiled:
    """Compile and publish at ``out``, or raise and leave ``out`` as it was.

    Args:
        require_certificate: False packs without one when certification is refused.
        budget_s: after that no further candidate is tried, and the best of those that were ships.
        finish: called with the finished directory just before it is published: signs it.

    Raises:
        InvalidInput, CompileError: models or data are wrong. GateRefused: no candidate keeps the quality budget.
        CalibrationError: certification refused, with the samples needed. Conflict: ``out`` holds something else.
        StorageError: the disk said no.
    """
    out = out.resolve()
    pack.check_destination(out)
    steps = CachedSteps(cache, watcher, budget_s=math.inf if budget_s is None else budget_s)

    def produce(directory: Path, work: Path) -> dict[str, Any]:
        del work
        _write(recipe, directory, steps, require_certificate=require_certificate, smoke=False)
        return {}

    key = {**_key(recipe), "require_certificate": require_certificate}
    if budget_s is not None:  # what was left out is not what a compilation without one would leave out
        key["budget_s"] = budget_s
    step = steps.keep("artifact", key, produce, Doing(watcher))
    with pack.workspace(out) as scratch, steps("publish") as doing:
        pack.publish(step.directory, out, scratch, finish=finish)
        doing.note(str(out))
    layout = Layout(out)
    return Compiled(
        reference=recipe.reference,
        digest=layout.digest,
        directory=out,
        evaluation=evaluation.decode((out / pack.EVALUATION_FILE).read_bytes()),
        was_kept=step.was_cached,
    )


def smoke(recipe: Recipe, scratch: Path, *, cache: StepCache, watcher: Watcher) -> Evaluation:
    """Run the whole recipe on few samples and one candidate a precision, to find mistakes in seconds; publish nothing.

    Raises:
        As :func:`compile_recipe`, but for refusals: too few samples are the point.
    """
    if recipe.certificate.score == PROBE:  # so few rows teach a head nothing, which is no mistake of the recipe
        certificate = msgspec.structs.replace(recipe.certificate, score=certificate_section.AUTO)
        recipe = replace(recipe, certificate=certificate)
    layout = _write(recipe, scratch, CachedSteps(cache, watcher), require_certificate=False, smoke=True)
    return evaluation.decode(layout.blobs.read(layout.referrers(manifests.EVALUATION)[-1].content.digest))


def _key(recipe: Recipe) -> dict[str, Any]:
    """List everything that decides the artifact: the recipe without its place, the content it names, this machine."""
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
        "sources": recipe_models.source_fingerprints(recipe),
        "examples": examples_digest(recipe),
        "functions": judging.digests(recipe),
        "toolchains": _toolchains(recipe),
        "machine": machine_facts(),
    }


def _toolchains(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return the versions of the toolchains that export and build the models of a recipe.

    Raises:
        MissingToolchain: one that is needed is not installed.
    """
    engines = {targets.resolve(name).engine for rung in recipe.rungs for name in rung.section.targets}
    needed = recipe_models.toolchains_needed(recipe) | (engines & {"tensorrt", "tensorrt-rtx"})
    return {name: toolchain.describe(name) for name in sorted(needed)}


def examples_digest(recipe: Recipe) -> str:
    """Return the content of the examples that a recipe names.

    Raises:
        InvalidInput: there are none, or they cannot be read.
    """
    return FAMILIES[recipe.model.task].examples_digest(recipe)


def check_passes(recipe: Recipe) -> None:
    """Check the options of every pass before the first step rather than at that pass.

    Raises:
        ConfigError: no such pass, or options that it does not have.
    """
    for rung in recipe.rungs:
        for name, options in rung.section.passes.items():
            try:
                table.find(name).check(options)
            except ConfigError as error:
                raise ConfigError(f"{rung.role}: {error.message}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """One variant of the artifact that is being made.

    Attributes:
        chosen: the candidate that it is.
        draft: the same, ready to pack.
        digest: that it will have once packed.
    """

    chosen: Chosen
    draft: VariantDraft
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drafts:
    """Everything that the artifact will hold, ready to pack."""

    variants: tuple[_Variant, ...]
    cloud: VariantDraft
    cloud_digest: str


def _write(recipe: Recipe, directory: Path, steps: CachedSteps, *, require_certificate: bool, smoke: bool) -> Layout:
    """Make everything, from models to an artifact in ``directory``."""
    check_passes(recipe)
    for goal in _goals(recipe):
        if problem := not_served(goal.target.engine):
            with steps(f"{goal.rung.role}/{goal.target.name}") as doing:  # said before an hour has gone into it
                doing.note(f"made for another runtime: {problem}")
    promise = _to_be_kept(recipe) if require_certificate else None
    family = FAMILIES[recipe.model.task].load(steps, recipe, promise=promise, smoke=smoke)
    cloud = family.cloud_draft()
    drafts = _Drafts(
        variants=tuple(_variant(family, goal, directory) for goal in _goals(recipe)),
        cloud=cloud,
        cloud_digest=variant_digest(cloud, directory),
    )
    claims = [_claim(family, recipe, one, drafts, is_required=require_certificate) for one in drafts.variants]
    cascades = [
        None if claim is None else cascade.build(steps, claim, partial(family.ask, one.chosen.candidate))
        for claim, one in zip(claims, drafts.variants, strict=True)
    ]
    figures, reference = _evaluated(family, recipe, steps, drafts, cascades)
    issued = [found.issued for found in cascades if found is not None and found.issued is not None]
    with steps("pack") as doing:
        layout = pack.write(
            directory,
            [*(variant.draft for variant in drafts.variants), cloud],
            [one.certificate for one in issued],
            [
                *(pack.evidence(one.evidence) for one in issued),
                *pack.documents(
                    lock=lock.encode(recipe, steps.taken),
                    evaluation=evaluation.encode(figures),
                    report=report.render(figures),
                    reference=reference,
                ),
            ],
            tag=recipe.model.version,
        )
        doing.note(f"{recipe.reference} {layout.digest}")
    return layout


def _to_be_kept(recipe: Recipe) -> CertificateSection | None:
    """Return the promise of each rung; None where nothing is certified here."""
    runs_here = any(goal.target.runs_here for goal in _goals(recipe))
    if not recipe.model.has_cascade or not runs_here:
        return None
    return certificate_section.for_rung(recipe.certificate, len(recipe.rungs))


def _goals(recipe: Recipe) -> Iterator[Goal]:
    """List every rung on every target, the device first."""
    for rung in recipe.rungs:
        for name in rung.section.targets:
            yield Goal(rung=rung, target=targets.resolve(name))


def _variant(family: Family, goal: Goal, directory: Path) -> _Variant:
    """Make every candidate for a goal, choose one, and make it ready to pack."""
    terms = family.terms
    chosen = candidates.choose(family.candidates(goal), max_drop=terms.max_drop, advice=terms.advice)
    chosen = family.probed(chosen)
    draft = family.draft(chosen)
    return _Variant(chosen=chosen, draft=draft, digest=variant_digest(draft, directory))


def _claim(family: Family, recipe: Recipe, variant: _Variant, drafts: _Drafts, *, is_required: bool) -> Claim | None:
    """Say what is to be certified; None for a task that has no cascade, and where the variant cannot be run."""
    goal = variant.chosen.goal
    if not recipe.model.has_cascade or not goal.target.runs_here:
        return None
    return Claim(
        what=goal.what,
        promise=certificate_section.for_rung(recipe.certificate, len(recipe.rungs)),
        subject=Subject(
            model=recipe.model.name,
            edge_digest=variant.digest,
            cloud_digest=drafts.cloud_digest,
            preprocessing_digest=manifests.preprocessing_digest(family.preprocessing),
        ),
        sample=family.sample,
        units=family.units,
        is_required=is_required,
        correct=family.terms.correct,
        opinion=family.terms.opinion,
        probed=variant.chosen.candidate.probed,
    )


def _evaluated(
    family: Family,
    recipe: Recipe,
    steps: CachedSteps,
    drafts: _Drafts,
    cascades: Sequence[Cascade | None],
) -> tuple[Evaluation, bytes]:
    """Describe everything on the test split, beside what was found on the way, and how its rows are distributed."""
    with steps("test") as doing:
        tested = family.evaluate(family.cloud, CLOUD, doing)
        whole = _figures(tested, family.cloud, drafts.cloud, drafts.cloud_digest)
        evaluated = tuple(
            _target(family, variant, found, doing) for variant, found in zip(drafts.variants, cascades, strict=True)
        )
        doing.note(f"{family.terms.metric} {wording.percent(whole.quality)} (cloud)")
    figures = Evaluation(
        model=recipe.model.name,
        version=recipe.model.version,
        task=recipe.model.task,
        machine=this_machine(),
        splits=dict(family.splits),
        sources=dict(family.sources),
        targets=evaluated,
        cloud=whole,
        generation=family.further_figures([variant.chosen for variant in drafts.variants]),
        judged_by=dict(family.terms.judged_by),
        repeats=family.repeats,
    )
    return figures, tested.reference


def _target(family: Family, variant: _Variant, found: Cascade | None, doing: Doing) -> TargetEvaluation:
    chosen, terms = variant.chosen, family.terms
    goal, parent = chosen.goal, chosen.parent
    role, target = goal.rung.role, goal.target
    before, after = (family.evaluate(one, goal.what, doing) for one in (parent, chosen.candidate))
    return TargetEvaluation(
        role=role,
        target=target.name,
        objective=goal.rung.section.objective,
        metric=terms.metric,
        max_drop=terms.max_drop,
        parent=parent.name,
        chosen=chosen.candidate.name,
        candidates=chosen.figures,
        sensitivity=chosen.sensitivity,
        clock_noise=chosen.clock_noise,
        parent_test=VariantFigures(
            role=role,
            target=target.name,
            precision=parent.precision,
            digest="",
            size_bytes=parent.made.size_bytes,
            quality=before.quality,
            agreement_cloud=before.agreement,
            ranking=before.ranking,
            speed=before.speed,
        ),
        variant=_figures(after, chosen.candidate, variant.draft, variant.digest),
        cascade=None if found is None else found.evaluation,
        not_measured=(
            "" if target.runs_here else f"this machine cannot run {target.name}: certify it on such a device"
        ),
    )


def _figures(tested: Tested, candidate: Candidate, draft: VariantDraft, digest: str) -> VariantFigures:
    """Put what was found of a variant beside what it is."""
    return VariantFigures(
        role=draft.spec.role,
        target=draft.spec.target,
        precision=draft.spec.precision,
        digest=digest,
        size_bytes=draft.weights.stat().st_size + sum(path.stat().st_size for path in draft.files.values()),
        quality=tested.quality,
        agreement_cloud=tested.agreement,
        ranking=tested.ranking,
        speed=tested.speed,
        rows_mixed=candidate.rows_mixed,
    )
