"""Candidates for one rung on one target, and which of them ships. Pure: makes and measures none.

A model changes its form five times on its way through the compiler, and each form has one name:

1. ``compiler.sources.Source``: what a recipe names, of whatever kind: a directory, a file, a factory.
2. ``compiler.pipeline.cached_steps.Model``: files on disk known by their content, from exports and from every pass.
3. ``Candidate``: a model that competes for one goal, with what was measured of it or why it is refused.
4. ``penstock.artifact.layout.VariantDraft``: the chosen candidate ready to pack: its spec, files and golden vectors.
5. ``penstock.artifact.manifests.Variant``: what an artifact holds, known by the digest of its manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact.evaluation import (
    CandidateFigures,
    Coverage,
    Drop,
    ProbeFigures,
    ScoreFigures,
    SensitivityFigures,
    Share,
    Speed,
    Speedup,
)
from compiler.certificate.score_choice import Choice
from compiler.measure import gate
from compiler.measure.gate import Budget, Measured
from compiler.pipeline.cached_steps import Model
from compiler.recipe.recipes import Rung
from compiler.recipe.targets import Target
from penstock.errors import GateRefused

_NOT_ASKED_FOR = "the float parent; not among the precisions asked for"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What one variant is compiled for: a rung of the cascade, on one of its targets."""

    rung: Rung
    target: Target

    @property
    def what(self) -> str:
        """Name the variant, for messages."""
        return f"{self.rung.role}/{self.target.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What became of a head for a candidate's confidence.

    Attributes:
        figures: for the evaluation.
        scores: of every score that was compared with it, its own among them.
        tuned: a file with its confidence in each tuning row, by heads that did not see that row; None where it is not
            part of the candidate's graph.
    """

    figures: ProbeFigures
    scores: tuple[ScoreFigures, ...]
    tuned: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that competes for a goal, or that could not be made.

    Attributes:
        name: what was tried, such as "int8 entropy".
        model: what was made; None where it could not be made.
        refusal: why it may not ship whatever the gate says, in a sentence; "" where the gate decides.
        summary: what its pass says of it.
        quality: share of tuning rows answered well.
        drop: quality lost against the float parent; None for the parent, and where quality is judged otherwise.
        speed: None where the target cannot be run here.
        speedup: against the float parent, from calls in turns; None for the parent, and where there were none.
        latency_ms: what the gate compares: of one row, or of one token.
        coverage: how much of it is integer; None for a float model.
        kept_float: names of operators that were sent back to float.
        rows_mixed: which operator makes rows change each other's answers, so that they run one at a time; "" where
            they are independent.
        probed: what became of a head for its confidence; None where none was tried.
    """

    name: str
    precision: str
    model: Model | None = None
    refusal: str = ""
    summary: str = ""
    quality: Share | None = None
    drop: Drop | None = None
    speed: Speed | None = None
    speedup: Speedup | None = None
    latency_ms: float | None = None
    coverage: Coverage | None = None
    kept_float: tuple[str, ...] = ()
    rows_mixed: str = ""
    probed: Probed | None = None

    @property
    def made(self) -> Model:
        """Return the model of a candidate that was made."""
        assert self.model is not None, f"{self.name} was not made: {self.refusal}"
        return self.model

    @property
    def has_head(self) -> bool:
        """Say whether its graph computes its own confidence."""
        return self.probed is not None and self.probed.figures.ships

    def batch_rows(self, most: int) -> int:
        """Return how many rows it may be asked at once, of at most ``most``: as many as the variant is served with."""
        return 1 if self.rows_mixed else most


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Every candidate for one goal.

    Attributes:
        parent: the float model that others are compared with; among ``candidates`` where it may ship.
        sensitivity: noise of single operators, for the evaluation; () where none was measured.
        clock_noise: how much faster than itself a model may seem; None where nothing was timed in turns.
    """

    goal: Goal
    parent: Candidate
    candidates: tuple[Candidate, ...]
    sensitivity: tuple[SensitivityFigures, ...] = ()
    clock_noise: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The candidate that ships for a goal.

    Attributes:
        figures: of every candidate, each with the gate's verdict on it.
    """

    goal: Goal
    parent: Candidate
    candidate: Candidate
    figures: tuple[CandidateFigures, ...]
    sensitivity: tuple[SensitivityFigures, ...]
    clock_noise: float | None


def choose(contest: Contest, *, max_drop: float, advice: str) -> Chosen:
    """Let the gate decide among the candidates that are not refused already.

    Args:
        max_drop: of quality, that a candidate may cost.
        advice: what the author of the recipe can do where none may ship.

    Raises:
        GateRefused: no candidate may ship, with the reason of each.
    """
    goal, candidates = contest.goal, contest.candidates
    objective, noise = goal.rung.section.objective, contest.clock_noise or 1.0
    budget = Budget(max_drop=max_drop, objective=objective, clock_noise=noise)
    eligible = [candidate for candidate in candidates if not candidate.refusal]
    verdict = gate.choose([_measured(one) for one in eligible], _measured(contest.parent), budget)
    reasons = iter(verdict.reasons)
    verdicts = [candidate.refusal or next(reasons) for candidate in candidates]
    if verdict.chosen is None:
        listing = "; ".join(f"{one.name}: {reason}" for one, reason in zip(candidates, verdicts, strict=True))
        raise GateRefused(f"refused: no candidate for {goal.what} may ship. {listing}. {advice}")
    chosen = eligible[verdict.chosen]
    return Chosen(
        goal=goal,
        parent=contest.parent,
        candidate=chosen,
        figures=_figures(contest, verdicts, chosen),
        sensitivity=contest.sensitivity,
        clock_noise=contest.clock_noise,
    )


def _figures(contest: Contest, verdicts: Sequence[str], chosen: Candidate) -> tuple[CandidateFigures, ...]:
    lines = [
        _line(candidate, verdict, ships=candidate is chosen)
        for candidate, verdict in zip(contest.candidates, verdicts, strict=True)
    ]
    if all(candidate.name != contest.parent.name for candidate in contest.candidates):
        lines.insert(0, _line(contest.parent, _NOT_ASKED_FOR, ships=False))
    return tuple(lines)


def _measured(candidate: Candidate) -> Measured:
    return Measured(
        name=candidate.name,
        size_bytes=candidate.made.size_bytes,
        drop=candidate.drop,
        latency_ms=candidate.latency_ms,
        speedup=candidate.speedup,
        quantized_bytes=None if candidate.coverage is None else candidate.coverage.integer_weight_bytes,
    )


def _line(candidate: Candidate, verdict: str, *, ships: bool) -> CandidateFigures:
    return CandidateFigures(
        name=candidate.name,
        precision=candidate.precision,
        size_bytes=0 if candidate.model is None else candidate.model.size_bytes,
        quality=candidate.quality,
        drop=candidate.drop,
        speed=candidate.speed,
        speedup=candidate.speedup,
        coverage=candidate.coverage,
        kept_float=candidate.kept_float,
        summary=candidate.summary,
        ships=ships,
        verdict=verdict,
    )


def score_figures(choice: Choice) -> tuple[ScoreFigures, ...]:
    """Return what the evaluation says of every score that was compared."""
    expected = {**choice.coverage, **choice.beside}
    return tuple(
        ScoreFigures(
            name=name,
            coverage=expected[name],
            auroc=found.auroc,
            curve=found.curve,
            drafted_tokens=choice.drafted.get(name),
        )
        for name, found in choice.rankings.items()
    )
