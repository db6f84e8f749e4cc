"""The steps of a compilation that ask language models, each kept by content.

Owns what their results depend on: beside models, texts and settings the engine that was asked, since another one's
answers are others. What the figures mean, and which model ships, is ``compiler.pipeline.language``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Speedup
from compiler.certificate.columns import Graded
from compiler.generation import built_model, choices, golden_answers, grading
from compiler.generation.built_model import Answers, BuiltModel, Likelihoods
from compiler.generation.choices import Chosen
from compiler.generation.compare import PerplexityChange
from compiler.generation.prompts import PromptSet
from compiler.measure import speedups
from compiler.pipeline.cached_steps import CachedSteps, Model, machine_facts
from compiler.progress import Doing
from compiler.recipe.generation_section import Generate
from penstock.artifact import golden
from penstock.artifact.blobs import digest_of
from penstock.artifact.manifests import canonical_json
from penstock.hosting.generation.text_metric import TextMetric


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What was measured of one built model.

    Attributes:
        model: its files.
        runner: asks it.
        change: against its float parent; None for a parent.
    """

    model: Model
    runner: BuiltModel
    likelihoods: Likelihoods
    speed: built_model.Speed
    change: PerplexityChange | None = None


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """What was timed in turns: speedups against the float parent by candidate, and how far the clock can be trusted."""

    speedups: dict[str, Speedup]
    clock_noise: float


def measure(steps: CachedSteps, model: Model, runner: BuiltModel, texts: Sequence[str], doing: Doing) -> Measured:
    """Measure how fast a model is, and how likely it finds the texts."""

    def produce(out: Path, work: Path) -> built_model.Speed:
        del work
        # first, since it runs in a process of its own: a model that kills the process kills that one
        speed = built_model.speed(runner, progress=lambda share, note: doing.advance(share / 2, note))
        found = built_model.likelihoods(
            runner, texts, progress=lambda share, note: doing.advance(0.5 + share / 2, note)
        )
        arrays = {name: getattr(found, name) for name in Likelihoods.__slots__}
        np.savez(out / "likelihoods.npz", **arrays)
        return speed

    key = _key(runner, model=model.content, texts=digest_of("\0".join(texts).encode()))
    step = steps.keep("perplexity", key, produce, doing)
    with np.load(step.directory / "likelihoods.npz") as file:
        likelihoods = Likelihoods(**{name: file[name] for name in file.files})
    speed = msgspec.convert(step.facts, built_model.Speed)
    return Measured(model=model, runner=runner, likelihoods=likelihoods, speed=speed)


def in_turns(steps: CachedSteps, parent: Measured, rivals: Mapping[str, Measured], doing: Doing) -> Turns:
    """Time candidates by name in turns with their float parent, and the parent with itself."""
    ours = parent.runner

    def produce(out: Path, work: Path) -> Turns:
        del out, work
        found: dict[str, Speedup] = {}
        for name, rival in rivals.items():
            doing.advance(len(found) / (len(rivals) + 1), name)
            candidate_s, parent_s = built_model.in_turns(rival.runner, ours)
            found[name] = speedups.speedup(parent_s, candidate_s)
        doing.advance(len(rivals) / (len(rivals) + 1), "the parent again")
        again_s, parent_s = built_model.in_turns(ours, ours)
        return Turns(speedups=found, clock_noise=speedups.noise(speedups.speedup(parent_s, again_s)))

    key = _key(ours, parent=parent.model.content, models={name: rival.model.content for name, rival in rivals.items()})
    return msgspec.convert(steps.keep("turns", key, produce, doing).facts, Turns)


def golden_vectors(steps: CachedSteps, measured: Measured, tune: PromptSet, doing: Doing) -> bytes:
    """Return golden vectors from tuning prompts, as they are packed."""
    runner = measured.runner

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del work
        (out / "golden.msgpack").write_bytes(golden.encode(golden_answers.vectors(runner, tune.prompts)))
        return {}

    key = _key(runner, model=measured.model.content, prompts=tune.digest)
    return (steps.keep("golden", key, produce, doing).directory / "golden.msgpack").read_bytes()


def answers(steps: CachedSteps, measured: Measured, asked: PromptSet, settings: Generate, doing: Doing) -> Answers:
    """Return the answers of one model to prompts."""
    runner = measured.runner

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del out, work
        found = built_model.answers(runner, asked.prompts, settings, progress=doing.advance)
        return {name: msgspec.to_builtins(getattr(found, name), enc_hook=_plain) for name in Answers.__slots__}

    key = _key(runner, model=measured.model.content, prompts=asked.digest, settings=settings)
    facts = steps.keep("answers", key, produce, doing).facts
    return Answers(
        texts=tuple(facts["texts"]),
        prompt_ids=_arrays(facts["prompt_ids"], np.int64),
        token_ids=_arrays(facts["token_ids"], np.int64),
        probabilities=_arrays(facts["probabilities"], np.float64),
        margins=_arrays(facts["margins"], np.float64),
    )


def chosen(
    steps: CachedSteps,
    measured: Measured,
    asked: PromptSet,
    options: Sequence[Sequence[str]],
    stop: tuple[str, ...],
    doing: Doing,
) -> Chosen:
    """Return what one model chooses among the options of each prompt."""
    runner = measured.runner

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del out, work
        found = choices.chosen(runner, asked.prompts, options, stop=stop, progress=doing.advance)
        return {"texts": found.texts, "logprobs": [row.tolist() for row in found.logprobs]}

    key = _key(runner, model=measured.model.content, prompts=asked.digest, options=options, stop=stop)
    facts = steps.keep("choices", key, produce, doing).facts
    return Chosen(texts=tuple(facts["texts"]), logprobs=_arrays(facts["logprobs"], np.float64))


def grades(
    steps: CachedSteps,
    metric: TextMetric,
    asked: PromptSet,
    edge: Sequence[str],
    cloud: Sequence[str],
    *,
    by_answers: bool,
    doing: Doing,
) -> Graded:
    """Return how good two models' answers are by a metric; the same answers are graded once, and once only."""

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del out, work
        found = grading.grade(metric, asked, edge, cloud, by_answers=by_answers, progress=doing.advance)
        return {name: getattr(found, name).tolist() for name in Graded.__slots__}

    key = {
        "metric": metric.opinion.metric,
        "code": metric.opinion.digest,
        "prompts": asked.digest,
        "answers": digest_of(canonical_json([list(edge), list(cloud)])),
        "by_answers": by_answers,
    }
    facts = steps.keep("grades", key, produce, doing).facts
    return Graded(**{name: np.array(facts[name], dtype=np.float64) for name in Graded.__slots__})


def _key(runner: BuiltModel, **parts: Any) -> dict[str, Any]:
    return {**parts, "engine": runner.engine, "machine": machine_facts()}


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)  # type: ignore[arg-type]


def _arrays(rows: Sequence[Sequence[float]], dtype: type[Any]) -> tuple[NDArray[Any], ...]:
    return tuple(np.array(row, dtype=dtype) for row in rows)
