"""By what answers are judged in a compilation: the recipe's metric and functions, found, wrapped and known by content.

Owns that functions of the recipe's author are imported from the recipe's directory, that what goes wrong in them is
told in a sentence, and that a change of them is noticed. What metrics mean is ``compiler.measure``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from compiler.data import Dataset
from compiler.measure import quality
from compiler.measure.metrics import METRICS, Metric
from compiler.measure.quality import Function, Judge
from compiler.pipeline.cached_steps import Model
from compiler.pipeline.family import Terms
from compiler.recipe.recipes import ModelSection, Recipe
from penstock.artifact.manifests import VariantSpec, decoder_of
from penstock.errors import CalibrationError, CompileError, ConfigError, InvalidInput
from penstock.hosting.generation.text_metric import TextMetric
from penstock.policy.confidence import Kind
from penstock.policy.decoding import Answers, Decoder, Decoding, joined, kind_of
from penstock.process import python_code
from penstock.process.config import nearest
from penstock.runtime import Engine
from penstock.wire.tensors import Array, listing

_KIND_ROWS = 64
_METRIC, _CORRECT = "model.metric", "model.correct"


def judge_of(recipe: Recipe, output: str) -> Judge:
    """Return what judges the answers of a recipe's models.

    Args:
        output: name of the scored output.

    Raises:
        ConfigError: no such metric, or one that is for other answers. InvalidInput: no such function.
    """
    model, base = recipe.model, recipe.base
    row = quality.TASKS[model.task]
    name = model.metric or row.metric
    if _is_code(name):
        metric = Metric(
            words=name.rpartition(":")[2].replace("_", " "),
            about=name,
            function=_function(name, base, _METRIC),
            forms=(row.form,),
        )
    else:
        metric = _ready_made(name, model)
    return Judge(
        task=model.task,
        decoder=decoder(model, output, model.kind),
        metric=metric,
        name=name,
        right_at=model.correct_at or metric.right_at,
        correct=_function(model.correct, base, _CORRECT) if model.correct else None,
        correct_name=model.correct,
        labels=model.labels,
    )


def judge_of_variant(spec: VariantSpec, correct: str) -> Judge:
    """Return what judges the answers of a packed variant.

    Args:
        correct: by what an answer is right, as a certificate says it; "" for the default of classes.

    Raises:
        CalibrationError: a function of the recipe's author, which no artifact holds.
    """
    form = decoder_of(spec).decoding.form
    task = next(task for task, row in quality.TASKS.items() if row.form == form)
    name, _, least = correct.partition(" >= ")
    if correct and name not in METRICS:
        raise CalibrationError(
            f"an answer was right by {correct.partition(' ')[0]}, which no artifact holds: compile with that recipe "
            "again, or count harm as disagreement (--harm disagreement)"
        )
    name = name or quality.TASKS[task].metric
    return Judge(
        task=task,
        decoder=decoder_of(spec),
        metric=METRICS[name],
        name=name,
        right_at=float(least) if least else METRICS[name].right_at,
        labels=spec.labels,
    )


def decoder(model: ModelSection, output: str, kind: Kind) -> Decoder:
    """Return what reads the scored output of a recipe's models."""
    settings = msgspec.structs.asdict(model.decoding)
    decoding = Decoding(form=quality.TASKS[model.task].form, **settings)
    return Decoder(output=output, kind=kind, decoding=decoding, probe=model.probe_output)


def with_kind(recipe: Recipe, model: Engine, output: str, data: Dataset) -> Recipe:
    """Return the recipe with what the scored output holds, told by its values for some rows where it does not say.

    Raises:
        InvalidInput: it is said to hold probabilities, and does not.
    """
    rows = {name: array[:_KIND_ROWS] for name, array in data.ranges.inputs.items()}
    said, form = recipe.model.output_kind, quality.TASKS[recipe.model.task].form
    if said == "logits":
        return recipe
    if form == "tokens":  # nothing else than probabilities is scored
        return replace(recipe, model=msgspec.structs.replace(recipe.model, output_kind="probabilities"))
    parts = [
        model.run({name: array[at : at + 1] for name, array in rows.items()}, [output])[output]
        for at in range(len(next(iter(rows.values()))))
    ]
    seen = kind_of(joined(parts), form)
    if said == "probabilities" and seen != said and form in ("classes", "text", "mask", "labels"):
        raise InvalidInput(
            f'model.output_kind: "probabilities" given, but the values of output {output!r} are none (from '
            f"{min(float(part.min()) for part in parts):.3g} to {max(float(part.max()) for part in parts):.3g}); leave "
            "the setting out, and it is told by the values",
            field="model.output_kind",
        )
    return replace(recipe, model=msgspec.structs.replace(recipe.model, output_kind=seen if said == "auto" else said))


def with_skipped(recipe: Recipe, model: Model) -> Recipe:
    """Return the recipe with the tokens that are no text, as the export of an encoder-decoder says them, where the
    recipe does not.
    """
    greedy = model.facts.get("greedy")
    if recipe.model.task != "seq2seq" or recipe.model.decoding.skip or not greedy:
        return recipe
    skip = tuple(sorted({*greedy["ends"], greedy["pad"], *greedy["forced"].values()}))
    decoding = msgspec.structs.replace(recipe.model.decoding, skip=skip)
    return replace(recipe, model=msgspec.structs.replace(recipe.model, decoding=decoding))


def check_outputs(recipe: Recipe, model: Engine) -> None:
    """Check that the outputs beside the scored one are there: generated tokens, and what says how sure an answer is.

    Raises:
        CompileError: one is not, or holds something else.
    """
    tokens, given = recipe.model.decoding.tokens, {spec.name: spec for spec in model.outputs}
    if recipe.model.task == "seq2seq" and (tokens not in given or not given[tokens].datatype.startswith("INT")):
        raise CompileError(
            f"model.decoding.tokens: {tokens!r} is no output of whole numbers [batch, tokens]; the model has "
            f"{listing(model.outputs)}"
        )
    name = recipe.model.probe_output
    listed = listing(model.outputs)
    found = next((spec for spec in model.outputs if spec.name == name), None)
    if name and (found is None or not found.datatype.startswith("FP") or found.shape[1:] not in ((), (1,))):
        raise CompileError(
            f"model.probe_output: {name!r} is no output of floats [batch] or [batch, 1]; the model has {listed}"
        )


def digests(recipe: Recipe) -> dict[str, str]:
    """Return the content of the functions that a recipe names, by setting: a changed metric makes all of it again.

    Raises:
        InvalidInput: there is no such file.
    """
    named = {_METRIC: recipe.model.metric, _CORRECT: recipe.model.correct}
    return {
        setting: python_code.digest_of_code(name, recipe.base, setting=setting)
        for setting, name in named.items()
        if _is_code(name)
    }


def text_metric(recipe: Recipe) -> TextMetric | None:
    """Return what grades the answers of a recipe's language models; None where they are the same or not.

    Raises:
        ConfigError: a setting that language models do not have. InvalidInput: no such function, or it takes something
            else.
    """
    model = recipe.model
    if model.correct or model.correct_at:
        raise ConfigError(
            f"{_CORRECT}: answers of a generation are the same or not, or as good as {_METRIC} says from 0 to 1"
        )
    if not model.metric:
        return None
    if not _is_code(model.metric):
        raise ConfigError(
            f"{_METRIC}: {model.metric!r} is not for task 'generation'; one of your own is 'module:function' or "
            "'file.py:function', which takes a prompt, an answer and a reference"
        )
    return TextMetric.load(model.metric, recipe.base, setting=_METRIC)


def text_terms(metric: TextMetric | None, *, max_drop: float, advice: str) -> Terms:
    """Return what language models are judged by: a metric, or whether answers are the same."""
    if metric is None:
        return Terms(metric="agreement", max_drop=max_drop, advice=advice)
    opinion = metric.opinion
    return Terms(
        metric=opinion.function.replace("_", " "),
        max_drop=max_drop,
        advice=advice,
        judged_by={"metric": f"{opinion.metric} {opinion.digest}"},
        opinion=opinion,
    )


def told(recipe: Recipe, judge: Judge) -> dict[str, str]:
    """Say by what answers were judged, functions with the digest of their source, for the evaluation."""
    found = digests(recipe)
    named = {"metric": judge.name, "correct": judge.right_words}
    return {what: " ".join(filter(None, (name, found.get(f"model.{what}", "")))) for what, name in named.items()}


def _is_code(name: str) -> bool:
    return ":" in name


def _ready_made(name: str, model: ModelSection) -> Metric:
    form = quality.TASKS[model.task].form
    known = [key for key, metric in METRICS.items() if form in metric.forms]
    if name not in METRICS:
        raise ConfigError(
            f"model.metric: no metric {name!r}; {nearest(name, known)}; one of your own is 'module:function' or "
            "'file.py:function'"
        )
    if name not in known:
        raise ConfigError(f"model.metric: {name} is not for task {model.task!r}, which has {', '.join(known)}")
    return METRICS[name]


def _function(name: str, base: Path, setting: str) -> Function:
    """Import a function of the author's; what it raises is told with its place."""
    function = python_code.function_in(name, base, setting=setting)

    def call(answers: Answers, references: Array) -> Any:
        with python_code.telling(name, setting=setting):
            return function(answers, references)

    return call
