"""The recipe of a compilation without one: what flags say, and what a model and its examples show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compiler import sources
from compiler.cache.steps import StepCache
from compiler.data import infer
from compiler.pipeline import recipe_models
from compiler.pipeline.cached_steps import CachedSteps, engine
from compiler.progress import Watcher
from compiler.recipe import recipes, targets
from compiler.recipe.recipes import Recipe
from compiler.sources import SourceSection, inspection


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What a command line says instead of a recipe."""

    data: str
    target: str | None = None
    precisions: tuple[str, ...] = ()
    task: str | None = None
    max_harm: float | None = None
    output_name: str | None = None
    allow_pickle: bool = False


def recipe_of_flags(model: str, base: Path, flags: Flags, *, cache: StepCache, watcher: Watcher) -> Recipe:
    """Make the recipe of a compilation without one: what ``compile init`` would guess of the model, and what the data
    show. Guesses are told with the flag that changes them.

    Raises:
        InvalidInput, ConfigError, CompileError: no such model or data, or what they are for cannot be guessed.
    """
    steps = CachedSteps(cache, watcher)
    section = SourceSection(allow_pickle=flags.allow_pickle)
    exported = recipe_models.export(steps, "edge", model, section, base=base, seed=0)
    loaded = engine(exported.path)
    examples = infer(flags.data, loaded.inputs)
    with steps("guesses") as doing:
        seen = inspection.look_at_export(sources.detect(model, base), exported.path)
        task = flags.task or seen.task
        output = flags.output_name or (seen.output if task == seen.task else "")
        told = [] if flags.task else [f"task {task}: {seen.why_task} (--task)"]
        told += [f"scores output {output} (--output-name)"] if output and not flags.output_name else []
        told += [f"labels in {examples.labels}" if examples.labels else "no labels (a recipe's data.labels)"]
        doing.note("; ".join(told))
    return recipes.of_model(
        model,
        examples,
        base=base,
        target=flags.target or targets.HOST,
        precisions=flags.precisions,
        task=task,
        max_harm=flags.max_harm,
        output=output,
        layout=seen.layout if task == "detection" else "",
        source=section,
    )
