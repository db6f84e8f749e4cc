"""Language models as they were built and chosen, and their figures for the evaluation. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler.artifact.evaluation import CandidateFigures, Share, Speed, TargetEvaluation, VariantFigures
from compiler.generation import compare, measure
from compiler.generation.answers import AnsweredPrompts
from compiler.generation.compare import PerplexityChange
from compiler.generation.measure import Likelihoods
from compiler.generation.prompts import PromptSet
from compiler.measure import side_by_side
from compiler.pipeline.cached_steps import Model
from compiler.pipeline.cascade import Cascade
from compiler.recipe.recipes import CLOUD, Recipe, Rung
from compiler.recipe.targets import Target
from penstock.artifact.layout import VariantDraft, variant_digest

CLOUD_TARGET = "cpu"
_METRIC = "agreement"
"""Of a candidate: places where it holds the same token likeliest as its float parent. Of what ships: equal answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One built model. ``change`` is against its float parent; None for the parent itself."""

    name: str
    precision: str
    model: Model
    summary: str
    likelihoods: Likelihoods
    speed: measure.Speed
    runner: measure.Model
    change: PerplexityChange | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What ships on one target, beside its float parent and the other candidates."""

    rung: Rung
    target: Target
    parent: Built
    built: Built
    candidates: tuple[CandidateFigures, ...]
    draft: VariantDraft


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Models built and chosen; ``cloud`` answers what the edge is unsure of."""

    recipe: Recipe
    sets: Mapping[str, PromptSet]
    chosen: tuple[Chosen, ...]
    cloud: Built
    cloud_draft: VariantDraft


def cloud_figures(generation: Generation, digest: str) -> VariantFigures:
    """The cloud agrees with itself; its figure of interest is the perplexity, in :func:`figures`."""
    n = len(generation.sets["test"].rows)
    whole = side_by_side.share(np.ones(n, dtype=np.bool_))
    return _variant(generation.cloud, CLOUD, CLOUD_TARGET, digest, whole, whole)


def figures(generation: Generation) -> dict[str, Any]:
    """What only language models have, for the evaluation: perplexities and speeds by variant."""
    built = {f"{item.rung.role}/{item.target.name}": item for item in generation.chosen}
    return msgspec.to_builtins(  # type: ignore[no-any-return]
        {
            "perplexity": {name: item.built.change for name, item in built.items()},
            "cloud_perplexity": compare.perplexity(generation.cloud.likelihoods),
            "speed": {name: item.built.speed for name, item in built.items()}
            | {f"{name} fp32": item.parent.speed for name, item in built.items()}
            | {CLOUD: generation.cloud.speed},
        }
    )


def target_evaluation(
    generation: Generation, item: Chosen, found: Cascade, tested: AnsweredPrompts, directory: Path
) -> TargetEvaluation:
    by_labels = generation.recipe.certificate.harm == "labels" and tested.labels is not None
    right = tested.labels if by_labels else tested.cloud
    quality, agreement = side_by_side.share(tested.edge == right), side_by_side.share(tested.edge == tested.cloud)
    name = item.target.name
    digest = variant_digest(item.draft, directory)
    return TargetEvaluation(
        role=item.rung.role,
        target=name,
        objective=item.rung.section.objective,
        metric=_METRIC,
        max_drop=generation.recipe.quality.max_perplexity_increase,
        parent=item.parent.name,
        chosen=item.built.name,
        candidates=item.candidates,
        sensitivity=(),
        parent_test=_variant(item.parent, item.rung.role, name, "", quality, agreement),
        variant=_variant(item.built, item.rung.role, name, digest, quality, agreement),
        cascade=found.evaluation,
        not_measured="" if item.target.runs_here else f"this machine cannot run {name}",
    )


def candidate_figures(built: Built, verdict: str, *, ships: bool, target: Target) -> CandidateFigures:
    agreement = None
    if built.change is not None:
        same = built.change.agreement
        agreement = Share(value=same.value, low=same.low, high=same.high, n=built.change.tokens)
    return CandidateFigures(
        name=built.name,
        precision=built.precision,
        size_bytes=built.model.size_bytes,
        quality=agreement,
        drop=None,
        speed=_speed(built) if target.runs_here else None,
        coverage=None,
        kept_float=(),
        summary=f"{built.summary}; perplexity {compare.perplexity(built.likelihoods):.2f}",
        ships=ships,
        verdict=verdict,
    )


def _variant(built: Built, role: str, target: str, digest: str, quality: Share, agreement: Share) -> VariantFigures:
    return VariantFigures(
        role=role,
        target=target,
        precision=built.precision,
        digest=digest,
        size_bytes=built.model.size_bytes,
        quality=quality,
        agreement_cloud=agreement,
        ranking=None,
        speed=_speed(built),
    )


def _speed(built: Built) -> Speed:
    return side_by_side.speed({"1": built.speed.first_token_ms}, built.speed.load_bytes)
