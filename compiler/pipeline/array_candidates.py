"""The candidates of models that answer with arrays: made by passes, and measured on the tuning split.

Decides what is tried and in which order: every precision that is asked for first, then, if no static int8 candidate
keeps the budget, its most sensitive operators back in float by bisection, then the clock. Which candidate ships is
``compiler.pipeline.candidates``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact import golden_inputs
from compiler.artifact.evaluation import Coverage, SensitivityFigures
from compiler.data import Dataset, calls
from compiler.measure import gate, quality
from compiler.measure.quality import Judge
from compiler.pipeline.cached_steps import CachedSteps, Model, as_it_is
from compiler.pipeline.candidates import Candidate, Contest, Goal
from compiler.pipeline.recipe_models import listing
from compiler.progress import Doing
from compiler.recipe.recipes import PruneSection, Recipe
from compiler.recipe.targets import Precision
from penstock.errors import CalibrationError, CompileError, MissingExtra
from penstock.wire.tensors import Array, is_compatible

CALIBRATORS = ("minmax", "percentile", "entropy")
MAX_PROBES = 16
MAX_CHANGED_BYTES = 2 * 1024**3 - 1
AS_IT_IS = "as it is"
_FLOATS = ("fp32", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all candidates for a goal have in common.

    Attributes:
        source: the rung's model, as it came.
        judge: of answers.
        smoke: try one calibrator only.
    """

    goal: Goal
    recipe: Recipe
    source: Model
    judge: Judge
    data: Dataset
    smoke: bool

    @property
    def is_changed(self) -> bool:
        """Say whether passes may change the model: a neural network in floats that fits into one message of protobuf
        (2 GiB). What its author has quantized is measured and served as it is.
        """
        return self.source.precision in _FLOATS and self.source.size_bytes <= MAX_CHANGED_BYTES

    @property
    def max_drop(self) -> float:
        """Return the share of quality that a candidate may cost."""
        return self.recipe.quality.max_accuracy_drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate to be made: a pass with its options; no pass ships the model as it is."""

    name: str
    precision: Precision
    pass_name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def compete(steps: CachedSteps, setting: Setting) -> Contest:
    """Make and measure every candidate.

    Raises:
        CompileError: the float parent itself fails; a candidate that fails is refused in the contest.
    """
    bench = _Bench(steps, setting)
    parent = bench.parent()
    tried = trials(setting)
    candidates: list[Candidate] = []
    for trial in tried:
        candidates.append(_as_before(trial, candidates) or bench.make(trial, parent))
    if bench.pruned is not None:
        candidates.append(bench.pruned)
    candidates, sensitivity = bench.restored(tried, candidates, parent)
    parent, *candidates = bench.timed([parent, *candidates])
    return Contest(goal=setting.goal, parent=parent, candidates=tuple(candidates), sensitivity=sensitivity)


def trials(setting: Setting) -> tuple[Trial, ...]:
    """List what is tried for a target, the careful first."""
    section = setting.goal.rung.section
    if not setting.is_changed:
        return (Trial(name=AS_IT_IS, precision=setting.source.precision, pass_name=""),)
    found: list[Trial] = []
    wanted = section.precisions or setting.goal.target.precisions
    own = setting.source.precision
    for precision in dict.fromkeys(own if one in ("fp32", own) else one for one in wanted):
        options = dict(section.passes.get("optimize" if precision == own else precision, {}))
        if precision == "int8" and "calibrator" not in options:
            calibrators = CALIBRATORS[:1] if setting.smoke else CALIBRATORS
            found += [
                Trial(name=f"int8 {name}", precision="int8", pass_name="int8", options={**options, "calibrator": name})
                for name in calibrators
            ]
        else:
            if precision in ("int8-weights", "int4-weights"):
                options = {"bits": 8 if precision == "int8-weights" else 4, **options}
            name = "optimize" if precision == own else precision
            found.append(Trial(name=precision, precision=precision, pass_name=name, options=options))
    return tuple(found)


def _why_as_it_is(source: Model) -> str:
    if source.precision in (*_FLOATS, "none"):
        return ""
    return f"quantized already ({source.precision}): measured and served as it came"


def _as_before(trial: Trial, made: Sequence[Candidate]) -> Candidate | None:
    """Refuse a static int8 candidate where another could not be made: with other ranges it fails alike."""
    failed = next((one for one in made if one.precision == trial.precision == "int8" and one.model is None), None)
    if failed is None:
        return None
    refusal = f"not tried: {failed.name} could not be made, and other ranges do not change that"
    return Candidate(name=trial.name, precision=trial.precision, refusal=refusal)


class _Bench:
    """Makes the candidates of one setting; holds the answers of the float parent that all are compared with."""

    def __init__(self, steps: CachedSteps, setting: Setting) -> None:
        self._steps = steps
        self._setting = setting
        self._what = setting.goal.what
        self._reference: Mapping[str, Array] | None = None
        self._good: NDArray[np.float64] | None = None
        self._base: Model | None = None
        self.pruned: Candidate | None = None

    def parent(self) -> Candidate:
        """Make the float parent: the optimized source, or a model that passes may not change as it is."""
        setting, section = self._setting, self._setting.goal.rung.section
        precision = setting.source.precision
        name, model, summary = AS_IT_IS, setting.source, _why_as_it_is(setting.source)
        if setting.is_changed:
            name = precision
            with self._steps(f"{self._what} {name}") as doing:
                model = self._steps.apply(
                    "optimize",
                    setting.source,
                    doing,
                    target=setting.goal.target,
                    options=section.passes.get("optimize", {}),
                    calibration=golden_inputs.rows_of(setting.data.ranges),
                    max_batch=setting.recipe.model.max_batch,
                )
                summary = model.how
                doing.note(summary)
        with self._steps(f"{self._what} ask") as doing:
            parent = self._seen(Candidate(name=name, precision=precision, model=model, summary=summary), doing)
            self._reference = self._answers(parent, doing, "the float model")
            self._good = self._good_rows(self._reference)
            share = quality.share(self._good)
            metric = setting.judge.metric_name(has_labels=setting.data.tune.labels is not None)
            doing.note(f"{metric} {share.value:.2%} on {share.n} tuning rows")
        parent = replace(parent, quality=share)
        self._base = model
        if setting.is_changed and section.prune is not None:
            self.pruned = self._prune(section.prune, parent)
            if self.pruned.model is not None and _cost(self.pruned) <= setting.max_drop:
                self._base = self.pruned.model  # else nothing made of it could keep the budget either
        return parent

    def make(self, trial: Trial, parent: Candidate, *, keep_float: tuple[str, ...] = ()) -> Candidate:
        """Make and ask one candidate; one that cannot be made is refused with the pass's own words."""
        if trial.pass_name in ("", "optimize"):
            return replace(parent, name=trial.name, precision=trial.precision)
        setting, base = self._setting, self._base
        assert base is not None
        tried = Candidate(name=trial.name, precision=trial.precision, kept_float=keep_float)
        with self._steps(f"{self._what} {trial.name}") as doing:
            try:
                model = self._steps.apply(
                    trial.pass_name,
                    base,
                    doing,
                    target=setting.goal.target,
                    options=trial.options,
                    calibration=setting.data.ranges,
                    max_batch=setting.recipe.model.max_batch,
                    keep_float=frozenset(keep_float),
                    seed=setting.recipe.seed,
                )
                _check_same_interface(setting.source, model)
                tried = self._seen(replace(tried, model=model), doing)
                answered = self._answers(tried, doing, trial.name)
            except (CalibrationError, CompileError, MissingExtra) as error:
                doing.note(f"not made: {error.message}")
                return replace(tried, model=None, refusal=error.message)
            good = self._good_rows(answered)
            assert self._good is not None
            drop = gate.paired_drop(self._good, good)
            doing.note(f"{model.how}; costs {100 * drop.value:.2f} points")
            return replace(
                tried,
                summary=f"{model.how}; rows run one at a time" if tried.rows_mixed else model.how,
                quality=quality.share(good),
                drop=drop,
                coverage=_coverage(model),
            )

    def restored(
        self, tried: Sequence[Trial], candidates: list[Candidate], parent: Candidate
    ) -> tuple[list[Candidate], tuple[SensitivityFigures, ...]]:
        """Add the best static int8 candidate with its sensitive operators in float, if none keeps the budget."""
        setting = self._setting
        int8 = [
            one for one in candidates if one.precision == "int8" and one.coverage and one.coverage.integer_weight_bytes
        ]
        if not int8:
            return candidates, ()
        best = min(int8, key=_cost)
        sensitivity = self._sensitivity(best.made)
        if _cost(best) <= setting.max_drop or not setting.recipe.quality.restore_operators or not sensitivity:
            return candidates, sensitivity
        (trial,) = (trial for trial in tried if trial.name == best.name)
        probed: dict[int, bool] = {0: False}
        found: dict[int, Candidate] = {}
        names = [line.node for line in sensitivity]
        while (count := gate.next_probe(probed, len(names))) is not None and len(probed) <= MAX_PROBES:
            probe = replace(trial, name=f"{trial.name}, {count} of {len(names)} in float")
            found[count] = self.make(probe, parent, keep_float=tuple(names[:count]))
            probed[count] = _cost(found[count]) <= setting.max_drop
        fits = [count for count, fitted in probed.items() if fitted]
        return [*candidates, *([found[min(fits)]] if fits else [])], sensitivity

    def timed(self, candidates: list[Candidate]) -> list[Candidate]:
        """Measure latency and memory of all candidates in turns, where the target runs here."""
        if not self._setting.goal.target.runs_here:
            return candidates
        models = {one.name: one.model for one in candidates if one.model is not None}
        with self._steps(f"{self._what} time") as doing:
            speeds = self._steps.speeds(models, self._setting.data.tune, doing)
            doing.note(", ".join(f"{name} {speed.p50_ms['1']:.3g} ms" for name, speed in speeds.items()))
        return [
            replace(one, speed=speeds[one.name], latency_ms=speeds[one.name].p50_ms["1"]) if one.model else one
            for one in candidates
        ]

    def _prune(self, section: PruneSection, parent: Candidate) -> Candidate:
        options = {"share": section.share, "method": section.method}
        name = f"fp32 pruned {section.share:.0%}"
        return self.make(Trial(name=name, precision="fp32", pass_name="prune", options=options), parent)

    def _sensitivity(self, quantized: Model) -> tuple[SensitivityFigures, ...]:
        from compiler.graph import sensitivity

        base, setting = self._base, self._setting
        assert base is not None
        takes = as_it_is(base.path).inputs

        def produce(out: Path, work: Path) -> list[SensitivityFigures]:
            del out, work
            ranked = sensitivity.rank(
                base.path,
                quantized.path,
                lambda: calls.each(setting.data.ranges, setting.recipe.model.max_batch, takes),
            )
            return [SensitivityFigures(node=r.name, operator=r.operator, sqnr_db=r.sqnr_db) for r in ranked]

        with self._steps(f"{self._what} noise") as doing:
            key = {"float": base.content, "quantized": quantized.content, "split": setting.data.ranges.digest}
            facts = self._steps.keep("sensitivity", key, produce, doing).facts
            ranked = tuple(msgspec.convert(line, SensitivityFigures) for line in facts)
            if ranked:
                doing.note(f"most sensitive: {ranked[0].node} at {ranked[0].sqnr_db:.1f} dB of {len(ranked)} operators")
        return ranked

    def _seen(self, candidate: Candidate, doing: Doing) -> Candidate:
        """Look whether rows change each other's answers, on the rows that devices will try, too.

        Raises:
            CompileError: they do, and the recipe refuses that.
        """
        samples = golden_inputs.of_edge(self._setting.data.ranges)
        mixed = self._steps.rows_mixed_by(candidate.made, samples, doing, precision=candidate.precision)
        refuse_mixed(self._setting.recipe, f"{self._what} {candidate.name}", mixed)
        return replace(candidate, rows_mixed=mixed)

    def _answers(self, candidate: Candidate, doing: Doing, what: str) -> dict[str, Array]:
        setting = self._setting
        return self._steps.answers(
            candidate.made,
            setting.data.tune,
            doing,
            decoder=setting.judge.decoder,
            max_batch=candidate.batch_rows(setting.recipe.model.max_batch),
            what=f"{self._what} {what}",
        )

    def _good_rows(self, answered: Mapping[str, Array]) -> NDArray[np.float64]:
        tune, judge = self._setting.data.tune, self._setting.judge
        reference = answered if self._reference is None else self._reference
        return judge.scores(answered, reference, tune.labels, quality.mask_of(tune.inputs))


def refuse_mixed(recipe: Recipe, what: str, mixed: str) -> None:
    """Refuse a model whose rows change each other's answers, where the recipe says so.

    Raises:
        CompileError: the operator, and the ways out.
    """
    if mixed and recipe.quality.mixed_rows == "refuse":
        raise CompileError(
            f"{what}: {mixed}. Export the model so that each row is answered by itself (in inference mode, nothing "
            'computed over axis 0), or set quality.mixed_rows = "alone" to have it run one row at a time'
        )


def _coverage(model: Model) -> Coverage | None:
    """Read how much of a model is integer from what its pass counted; None for a float model."""
    integer = model.facts.get("integer_weight_bytes")
    if integer is None:
        return None
    return Coverage(
        integer_weight_bytes=integer,
        float_weight_bytes=model.facts.get("float_weight_bytes") or 0,
        integer_nodes=model.facts.get("integer_nodes") or {},
        float_nodes=model.facts.get("float_nodes") or {},
    )


def _cost(candidate: Candidate) -> float:
    return float("inf") if candidate.drop is None else candidate.drop.value


def _check_same_interface(source: Model, made: Model) -> None:
    before, after = as_it_is(source.path), as_it_is(made.path)
    for what, ours, theirs in (("takes", before.inputs, after.inputs), ("gives", before.outputs, after.outputs)):
        if not is_compatible(ours, theirs):  # an optimizer may have inferred what the original leaves open
            raise CompileError(f"the pass changed what the model {what}: {listing(theirs)}, not {listing(ours)}")
