"""What a compilation would do, from the recipe and from what is quickly seen. Runs no model and writes nothing."""

from __future__ import annotations

from pathlib import Path

from compiler.artifact import pack
from compiler.certificate.binomial import samples_needed
from compiler.pipeline import compilation, judging, recipe_models
from compiler.recipe import targets
from compiler.recipe.recipes import CLOUD, Recipe, Rung
from penstock.artifact.certificates import Opinion
from penstock.runtime import not_served


def plan(recipe: Recipe, out: Path) -> list[tuple[str, str]]:
    """Describe the steps that :func:`compiler.pipeline.compilation.compile_recipe` would take.

    Raises:
        InvalidInput, ConfigError: a model or data that is not there. Conflict: for the destination.
    """
    pack.check_destination(out.resolve())
    compilation.check_passes(recipe)
    recipe_models.source_fingerprints(recipe)
    if ":" not in recipe.data.source:  # a function of the user's is not called for a plan
        compilation.examples_digest(recipe)
    lines = [(f"{rung.role} model", _source_words(rung)) for rung in recipe.rungs]
    if recipe.cloud is not None:
        lines.append((f"{CLOUD} model", recipe.cloud.model))
    promise = recipe.certificate
    needed = [samples_needed(level, promise.level_delta) for level in promise.levels]
    for rung in recipe.rungs:
        for name in rung.section.targets:
            target = targets.resolve(name)
            tried = ", ".join(rung.section.precisions or target.precisions)
            where = "" if target.runs_here else " (not measured here: this machine cannot run it)"
            unserved = f"; {problem}" if (problem := not_served(target.engine)) else ""
            lines.append((f"{rung.role}/{target.name}", f"candidates {tried}{where}{unserved}"))
    lines.append(("gate", _gate_words(recipe)))
    if recipe.model.has_cascade:
        lines.append(
            (
                "certify",
                f"{promise.harm} harm <= {', '.join(f'{level:g}' for level in promise.levels)} at delta "
                f"{promise.delta:g} by {promise.score}{_opinion_words(recipe)}; at least {max(needed)} rows",
            )
        )
    lines.append(("pack", f"{recipe.reference} -> {out}"))
    return lines


def _gate_words(recipe: Recipe) -> str:
    quality = recipe.quality
    if recipe.model.task == "generation":
        return f"perplexity at most {quality.max_perplexity_increase:g} above the float model's"
    return f"drop <= {quality.max_accuracy_drop:g} against the float model, on the tuning split"


def _opinion_words(recipe: Recipe) -> str:
    """Say whose opinion the promise is about, if it is about one. Its source is read, and not run.

    Raises:
        InvalidInput: there is no such file.
    """
    digest = judging.digests(recipe).get("model.metric", "")
    if recipe.model.task != "generation" or not digest:
        return ""
    return f" in the opinion of {Opinion(metric=recipe.model.metric, digest=digest).words()}"


def _source_words(rung: Rung) -> str:
    how = "a student trained by distillation, " if rung.section.distill else ""
    return f"{how}{rung.section.model}"
