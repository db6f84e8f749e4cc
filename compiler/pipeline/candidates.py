"""The candidates of one rung on one target: made, measured on the tuning split, gated, and one of them chosen.

Composes passes and the gate; decides the order of things: every candidate first, then, if no static int8 one keeps the
budget, its most sensitive operators back to float by bisection, then the clock, then the choice. What may be promised
of the one that ships is ``compiler.certificate.certify``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import CandidateFigures, Coverage, Drop, SensitivityFigures, Share, Speed
from compiler.data import Dataset
from compiler.measure import gate, quality, side_by_side
from compiler.measure.gate import Budget, Measured
from compiler.passes.job import PassResult
from compiler.pipeline.cached_steps import Model, Workshop, engine
from compiler.progress import Doing, Steps
from compiler.recipe.recipes import Recipe, Rung
from compiler.recipe.targets import Precision, Target
from penstock.errors import CalibrationError, CompileError, MissingExtra
from penstock.wire.tensors import Array

CALIBRATORS = ("minmax", "percentile", "entropy")
MAX_PROBES = 16
MAX_CHANGED_BYTES = 2 * 1024**3 - 1
NOT_ASKED_FOR = "the float parent; not among the precisions asked for"


class GateRefused(CompileError):
    """Candidates run, but none may ship: a refusal, not a failure."""

    code = "gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate to be made: a pass with its options; no pass ships the model as it is."""

    name: str
    precision: Precision
    pass_name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A candidate that was tried. ``model`` is None where it could not be made, and ``problem`` says why."""

    trial: Trial
    model: Model | None = None
    result: PassResult | None = None
    quality: Share | None = None
    drop: Drop | None = None
    speed: Speed | None = None
    kept_float: tuple[str, ...] = ()
    problem: str = ""

    @property
    def quantized_bytes(self) -> int | None:
        """Bytes of weights in low precision; None for float."""
        facts = {} if self.result is None else self.result.facts
        found: int | None = facts.get("integer_weight_bytes")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a target gets. ``candidates`` and ``sensitivity`` are for the evaluation."""

    target: Target
    parent: Candidate
    chosen: Candidate
    candidates: tuple[CandidateFigures, ...]
    sensitivity: tuple[SensitivityFigures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all candidates of a rung have in common."""

    recipe: Recipe
    rung: Rung
    target: Target
    source: Model
    is_neural: bool
    output: str
    data: Dataset
    smoke: bool

    @property
    def what(self) -> str:
        """For messages: which variant."""
        return f"{self.rung.role}/{self.target.name}"

    @property
    def is_changed(self) -> bool:
        """Whether passes may change the model: a neural network that fits into one message of protobuf (2 GiB)."""
        return self.is_neural and self.source.size_bytes <= MAX_CHANGED_BYTES

    @property
    def own_precision(self) -> Precision:
        """Of a model that is packed as it is."""
        return "fp32" if self.is_neural else "none"

    @property
    def budget(self) -> Budget:
        return Budget(max_drop=self.recipe.quality.max_accuracy_drop, objective=self.rung.section.objective)


def build(shop: Workshop, steps: Steps, setting: Setting) -> Built:
    """Make, measure and choose.

    Raises:
        GateRefused: no candidate may ship, with the reason of each. CompileError: the float parent itself fails.
    """
    bench = _Bench(shop, steps, setting)
    parent = bench.parent()
    candidates = [bench.make(trial, parent) for trial in trials(setting)]
    if bench.pruned is not None:
        candidates.append(bench.pruned)
    candidates, sensitivity = bench.restored(candidates, parent)
    parent, *candidates = bench.timed([parent, *candidates])
    return _judged(setting, parent, candidates, sensitivity)


def trials(setting: Setting) -> tuple[Trial, ...]:
    """What is tried for a target, the careful first."""
    section = setting.rung.section
    if not setting.is_changed:
        return (Trial(name="as it is", precision=setting.own_precision, pass_name=""),)
    found: list[Trial] = []
    for precision in section.precisions or setting.target.precisions:
        options = dict(section.passes.get("optimize" if precision == "fp32" else precision, {}))
        if precision == "int8" and "calibrator" not in options:
            calibrators = CALIBRATORS[:1] if setting.smoke else CALIBRATORS
            found += [
                Trial(name=f"int8 {name}", precision="int8", pass_name="int8", options={**options, "calibrator": name})
                for name in calibrators
            ]
        else:
            if precision in ("int8-weights", "int4-weights"):
                options = {"bits": 8 if precision == "int8-weights" else 4, **options}
            name = "optimize" if precision == "fp32" else precision
            found.append(Trial(name=precision, precision=precision, pass_name=name, options=options))
    return tuple(found)


class _Bench:
    """The candidates of one setting under way; holds the answers of the float parent that all are compared with."""

    def __init__(self, shop: Workshop, steps: Steps, setting: Setting) -> None:
        self._shop = shop
        self._steps = steps
        self._setting = setting
        self._reference: Array | None = None
        self._good: NDArray[np.bool_] | None = None
        self._base: Model | None = None
        self.pruned: Candidate | None = None

    def parent(self) -> Candidate:
        """The float parent: the optimized source, or a non-neural model as it is."""
        setting = self._setting
        trial = Trial(name="fp32", precision="fp32", pass_name="optimize")
        model, result = setting.source, None
        if setting.is_changed:
            with self._steps(f"{setting.what} fp32") as doing:
                options = setting.rung.section.passes.get("optimize", {})
                made = self._shop.apply("optimize", setting.source, doing, target=setting.target, options=options)
                model, result = made.model, made.result
                doing.note(result.summary)
        else:
            trial = Trial(name="as it is", precision=setting.own_precision, pass_name="")
        with self._steps(f"{setting.what} ask") as doing:
            self._reference = self._answers(model, doing, "the float model")
            self._good = self._good_rows(self._reference)
            share = side_by_side.share(self._good)
            metric = quality.metric_name(setting.recipe.model.task, has_labels=setting.data.tune.labels is not None)
            doing.note(f"{metric} {share.value:.2%} on {share.n} tuning rows")
        parent = Candidate(trial=trial, model=model, result=result, quality=share)
        self._base = model
        prune = setting.rung.section.prune
        if setting.is_changed and prune is not None:
            options = {"share": prune.share, "method": prune.method}
            trial = Trial(name=f"fp32 pruned {prune.share:.0%}", precision="fp32", pass_name="prune", options=options)
            self.pruned = self.make(trial, parent)
            if self.pruned.model is not None and _cost(self.pruned) <= setting.budget.max_drop:
                self._base = self.pruned.model  # else nothing made of it could keep the budget either
        return parent

    def make(self, trial: Trial, parent: Candidate, *, keep_float: tuple[str, ...] = ()) -> Candidate:
        """Make and ask one candidate; one that cannot be made is refused with the pass's own words."""
        if trial.pass_name in ("", "optimize"):
            return replace(parent, trial=trial)
        setting, base = self._setting, self._base
        assert base is not None
        with self._steps(f"{setting.what} {trial.name}") as doing:
            try:
                made = self._shop.apply(
                    trial.pass_name,
                    base,
                    doing,
                    target=setting.target,
                    options=trial.options,
                    calibration=setting.data.ranges,
                    max_batch=setting.recipe.model.max_batch,
                    keep_float=frozenset(keep_float),
                    seed=setting.recipe.seed,
                )
                _check_same_interface(setting.source, made.model)
                answered = self._answers(made.model, doing, trial.name)
            except (CalibrationError, CompileError, MissingExtra) as error:
                doing.note(f"not made: {error.message}")
                return Candidate(trial=trial, problem=error.message, kept_float=keep_float)
            good = self._good_rows(answered)
            assert self._good is not None
            drop = gate.paired_drop(self._good, good)
            doing.note(f"{made.result.summary}; costs {100 * drop.value:.2f} points")
            return Candidate(
                trial=trial,
                model=made.model,
                result=made.result,
                quality=side_by_side.share(good),
                drop=drop,
                kept_float=keep_float,
            )

    def restored(
        self, candidates: list[Candidate], parent: Candidate
    ) -> tuple[list[Candidate], tuple[SensitivityFigures, ...]]:
        """Candidates, with the best static int8 one's sensitive operators back in float if none keeps the budget."""
        setting = self._setting
        int8 = [c for c in candidates if c.trial.precision == "int8" and c.drop is not None and c.quantized_bytes]
        if not int8:
            return candidates, ()
        best = min(int8, key=_cost)
        sensitivity = self._sensitivity(best)
        if _cost(best) <= setting.budget.max_drop or not setting.recipe.quality.restore_operators or not sensitivity:
            return candidates, sensitivity
        tried: dict[int, bool] = {0: False}
        found: dict[int, Candidate] = {}
        names = [line.node for line in sensitivity]
        while (count := gate.next_probe(tried, len(names))) is not None and len(tried) <= MAX_PROBES:
            trial = replace(best.trial, name=f"{best.trial.name}, {count} of {len(names)} in float")
            found[count] = self.make(trial, parent, keep_float=tuple(names[:count]))
            tried[count] = found[count].drop is not None and _cost(found[count]) <= setting.budget.max_drop
        fits = [count for count, fitted in tried.items() if fitted]
        return [*candidates, *([found[min(fits)]] if fits else [])], sensitivity

    def timed(self, candidates: list[Candidate]) -> list[Candidate]:
        """Candidates with latency and memory, where the target runs here."""
        if not self._setting.target.runs_here:
            return candidates
        models = {c.trial.name: c.model for c in candidates if c.model is not None}
        with self._steps(f"{self._setting.what} time") as doing:
            speeds = self._shop.speeds(models, self._setting.data.tune, doing)
            doing.note(", ".join(f"{name} {speed.p50_ms['1']:.3g} ms" for name, speed in speeds.items()))
        return [replace(c, speed=speeds.get(c.trial.name)) for c in candidates]

    def _sensitivity(self, candidate: Candidate) -> tuple[SensitivityFigures, ...]:
        from compiler import data as datasets
        from compiler.graph import sensitivity

        base, setting = self._base, self._setting
        assert base is not None
        assert candidate.model is not None
        quantized = candidate.model

        def produce(out: Any, work: Any) -> list[SensitivityFigures]:
            del out, work
            ranked = sensitivity.rank(
                base.path, quantized.path, lambda: datasets.batches(setting.data.ranges, setting.recipe.model.max_batch)
            )
            return [SensitivityFigures(node=r.name, operator=r.operator, sqnr_db=r.sqnr_db) for r in ranked]

        with self._steps(f"{setting.what} noise") as doing:
            key = {"float": base.content, "quantized": quantized.content, "split": setting.data.ranges.digest}
            facts = self._shop.step("sensitivity", key, produce, doing).facts
            ranked = tuple(msgspec.convert(line, SensitivityFigures) for line in facts)
            if ranked:
                doing.note(f"most sensitive: {ranked[0].node} at {ranked[0].sqnr_db:.1f} dB of {len(ranked)} operators")
        return ranked

    def _answers(self, model: Model, doing: Doing, what: str) -> Array:
        setting = self._setting
        return self._shop.answers(
            model,
            setting.data.tune,
            doing,
            output=setting.output,
            max_batch=setting.recipe.model.max_batch,
            what=f"{setting.what} {what}",
        )

    def _good_rows(self, answered: Array) -> NDArray[np.bool_]:
        tune = self._setting.data.tune
        reference = answered if self._reference is None else self._reference
        return quality.good_rows(
            self._setting.recipe.model.task, answered, reference, labels=tune.labels, inputs=tune.inputs
        )


def _judged(
    setting: Setting, parent: Candidate, candidates: list[Candidate], sensitivity: tuple[SensitivityFigures, ...]
) -> Built:
    known = [_measured(c) for c in candidates if c.model is not None]
    verdict = gate.choose(known, _measured(parent), setting.budget)
    reasons = iter(verdict.reasons)
    told = [c.problem if c.model is None else next(reasons) for c in candidates]
    if verdict.chosen is None:
        listing = "; ".join(f"{c.trial.name}: {reason}" for c, reason in zip(candidates, told, strict=True))
        raise GateRefused(
            f"refused: no candidate for {setting.what} may ship. {listing}. Give calibration more (or more typical) "
            "examples, add a precision, or allow more in quality.max_accuracy_drop"
        )
    made = [c for c in candidates if c.model is not None]
    chosen = made[verdict.chosen]
    figures = tuple(_figures(c, reason, ships=c is chosen) for c, reason in zip(candidates, told, strict=True))
    if all(c.trial.name != parent.trial.name for c in candidates):
        figures = (_figures(parent, NOT_ASKED_FOR, ships=False), *figures)
    return Built(target=setting.target, parent=parent, chosen=chosen, candidates=figures, sensitivity=sensitivity)


def _measured(candidate: Candidate) -> Measured:
    assert candidate.model is not None
    return Measured(
        name=candidate.trial.name,
        size_bytes=candidate.model.size_bytes,
        drop=candidate.drop,
        latency_ms=None if candidate.speed is None else candidate.speed.p50_ms["1"],
        quantized_bytes=candidate.quantized_bytes,
    )


def _figures(candidate: Candidate, verdict: str, *, ships: bool) -> CandidateFigures:
    facts = {} if candidate.result is None else candidate.result.facts
    coverage = None
    if candidate.quantized_bytes is not None:
        coverage = Coverage(
            integer_weight_bytes=candidate.quantized_bytes,
            float_weight_bytes=facts.get("float_weight_bytes") or 0,
            integer_nodes=facts.get("integer_nodes") or {},
            float_nodes=facts.get("float_nodes") or {},
        )
    return CandidateFigures(
        name=candidate.trial.name,
        precision=candidate.trial.precision,
        size_bytes=0 if candidate.model is None else candidate.model.size_bytes,
        quality=candidate.quality,
        drop=candidate.drop,
        speed=candidate.speed,
        coverage=coverage,
        kept_float=candidate.kept_float,
        summary="" if candidate.result is None else candidate.result.summary,
        ships=ships,
        verdict=verdict,
    )


def _cost(candidate: Candidate) -> float:
    return float("inf") if candidate.drop is None else candidate.drop.value


def _check_same_interface(source: Model, made: Model) -> None:
    before, after = engine(source.path), engine(made.path)
    if before.inputs != after.inputs or before.outputs != after.outputs:
        raise CompileError("the pass changed what the model takes or gives")
