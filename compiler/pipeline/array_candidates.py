"""The candidates of models that answer with arrays: made by passes, and measured on the tuning split.

Decides in which order: every precision that is asked for first (``compiler.pipeline.trials``), then, if no static int8
candidate keeps the budget, its most sensitive operators back in float by bisection, then the clock. Which candidate
ships is ``compiler.pipeline.candidates``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact import golden_inputs
from compiler.artifact.evaluation import NOISY_CLOCK, Coverage, Drop, SensitivityFigures
from compiler.data import Split, buckets, calls
from compiler.measure import gate, quality
from compiler.pipeline import recipe_models, trials
from compiler.pipeline.cached_steps import CachedSteps, Model, as_it_is
from compiler.pipeline.candidates import Candidate, Contest
from compiler.pipeline.trials import Setting, Training, Trial
from compiler.progress import Doing
from compiler.recipe.recipes import PruneSection, Recipe
from penstock import wording
from penstock.errors import CalibrationError, CompileError, MissingExtra
from penstock.wire.tensors import Array, is_compatible, listing


def compete(steps: CachedSteps, setting: Setting, cloud: Model) -> Contest:
    """Make and measure every candidate.

    Args:
        cloud: the model that taught a student.

    Raises:
        CompileError: the float parent itself fails; a candidate that fails is refused in the contest.
        GateRefused: no candidate could be shown to keep the budget, whatever it does.
    """
    setting = replace(setting, training=_training(setting, cloud))
    bench = _Bench(steps, setting)
    parent = bench.parent()
    tried = trials.trials(setting)
    trials.check_rows(setting, tried)
    candidates: list[Candidate] = []
    for trial in tried:
        left_out = trials.out_of_time(trial) if steps.is_time_up else trials.as_before(trial, candidates)
        left_out = left_out or trials.not_needed(trial, candidates, setting)
        candidates.append(left_out or bench.make(trial, parent))
    if bench.pruned is not None:
        candidates.append(bench.pruned)
    candidates, sensitivity = bench.restored(tried, candidates, parent)
    (parent, *candidates), noise = bench.timed([parent, *candidates])
    return Contest(
        goal=setting.goal,
        parent=parent,
        candidates=tuple(candidates),
        sensitivity=sensitivity,
        clock_noise=noise,
    )


def _training(setting: Setting, cloud: Model) -> Training | None:
    """Say how a student is fine-tuned for integers, where the recipe wants that."""
    rows, decoder = setting.data.ranges.rows if setting.smoke else None, setting.judge.decoder
    found = recipe_models.quantization_aware(setting.recipe, setting.goal.rung, cloud, setting.data, rows)
    return found and Training(rows=found[0], options={**found[1], "output": decoder.output, "kind": decoder.kind})


class _Bench:
    """Makes the candidates of one setting; holds the answers of the float parent that all are compared with."""

    def __init__(self, steps: CachedSteps, setting: Setting) -> None:
        self._steps = steps
        self._setting = setting
        self._what = setting.goal.what
        self._reference: Mapping[str, Array] | None = None
        self._good: NDArray[np.float64] | None = None
        self._elsewhere = tuple(buckets.others(setting.data.tune))
        self._reference_elsewhere: list[Mapping[str, Array]] = []
        self._base: Model | None = None
        self._levels = setting.levels
        self.pruned: Candidate | None = None

    def parent(self) -> Candidate:
        """Make the float parent: the optimized source, or a model that passes may not change as it is."""
        setting, section = self._setting, self._setting.goal.rung.section
        precision = setting.source.precision
        name, model, summary = trials.AS_IT_IS, setting.source, trials.why_as_it_is(setting.source)
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
            self._reference = self._answers(parent, setting.data.tune, doing, "the float model")
            self._reference_elsewhere = [
                self._answers(parent, other, doing, f"the float model at {label}") for label, other in self._elsewhere
            ]
            self._good = self._good_rows(self._reference)
            share = quality.share(self._good)
            metric = setting.judge.metric_name(has_labels=setting.data.tune.labels is not None)
            doing.note(f"{metric} {wording.percent(share)} on {share.n} tuning rows")
        parent = replace(parent, quality=share)
        self._base = model
        if setting.is_changed and section.prune is not None:
            self.pruned = self._prune(section.prune, parent)
            if self.pruned.model is not None and self._keeps(self.pruned):
                self._base = self.pruned.model  # else nothing made of it could keep the budget either
        return parent

    def make(self, trial: Trial, parent: Candidate, *, keep_float: tuple[str, ...] = ()) -> Candidate:
        """Make and ask one candidate; one that cannot be made is refused with the pass's own words."""
        if trial.is_parent:
            return replace(parent, name=trial.name, precision=trial.precision)
        setting, base = self._setting, self._base
        assert base is not None
        tried = Candidate(name=trial.name, precision=trial.precision, kept_float=keep_float)
        level = self._levels.probe if keep_float else self._levels.listed
        with self._steps(f"{self._what} {trial.name}") as doing:
            try:
                model = self._steps.apply(
                    trial.pass_name,
                    base,
                    doing,
                    target=setting.goal.target,
                    options=trial.options,
                    calibration=trials.examples_for(trial, setting),
                    max_batch=setting.recipe.model.max_batch,
                    keep_float=frozenset(keep_float),
                    seed=setting.recipe.seed,
                )
                _check_same_interface(setting.source, model)
                tried = self._seen(replace(tried, model=model), doing)
                answered = self._answers(tried, setting.data.tune, doing, trial.name)
                elsewhere = self._drops_elsewhere(tried, doing, level)
            except (CalibrationError, CompileError, MissingExtra) as error:
                doing.note(f"not made: {error.message}")
                return replace(tried, model=None, refusal=error.message)
            good = self._good_rows(answered)
            assert self._good is not None
            clusters = setting.data.tune.clusters
            own = gate.paired_drop(gate.by_cluster(self._good, clusters), gate.by_cluster(good, clusters), level=level)
            # the budget has to be kept at every size, so each is tested at the full level (Berger 1982)
            where, drop = max([("", own), *elsewhere], key=lambda one: one[1].bound)
            drop = msgspec.structs.replace(drop, at=where)
            summary = f"{model.how}; costs most at {where}" if where else model.how
            doing.note(f"{summary}; costs {wording.points(drop.value)} points, at most {wording.points(drop.bound)}")
            return replace(
                tried,
                summary=f"{summary}; rows run one at a time" if tried.rows_mixed else summary,
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
        untrained = [one for one in int8 if one.name != trials.AWARE] or int8
        best = min(untrained, key=_cost)  # a trained one would have to be trained again for each probe
        sensitivity = self._sensitivity(best.made)
        fewest = gate.fewest_rows(setting.max_drop, self._levels.probe)
        is_shown = fewest is not None and setting.data.tune.units >= fewest  # of a probe that loses nothing
        if (
            any(map(self._keeps, int8))
            or not setting.recipe.quality.restore_operators
            or not sensitivity
            or not is_shown
        ):
            return candidates, sensitivity
        (trial,) = (trial for trial in tried if trial.name == best.name)
        probed: dict[int, bool] = {0: False}
        found: dict[int, Candidate] = {}
        names = [line.node for line in sensitivity]
        while (count := gate.next_probe(probed, len(names))) is not None and len(probed) <= gate.MAX_PROBES:
            if self._steps.is_time_up:
                break
            probe = replace(trial, name=f"{trial.name}, {count} of {len(names)} in float")
            found[count] = self.make(probe, parent, keep_float=tuple(names[:count]))
            probed[count] = self._keeps(found[count])
        fits = [count for count, fitted in probed.items() if fitted]
        return [*candidates, *([found[min(fits)]] if fits else [])], sensitivity

    def timed(self, candidates: list[Candidate]) -> tuple[list[Candidate], float | None]:
        """Measure latency and memory of all candidates in turns, where the target runs here; the parent comes first.

        Returns:
            the candidates, and the clock's noise (None where nothing was timed).
        """
        if not self._setting.goal.target.runs_here:
            return candidates, None
        models, parent = {one.name: one.model for one in candidates if one.model is not None}, candidates[0].name
        with self._steps(f"{self._what} time") as doing:
            timed = self._steps.timed(models, self._setting.data.tune, doing, parent=parent)
            noise = timed.clock_noise or 1.0
            noted = [f"{name} {speed.p50_ms['1']:.3g} ms" for name, speed in timed.speeds.items()]
            if noise > NOISY_CLOCK:
                noted.append(f"a noisy clock: {parent} seems up to {noise:.2f}x as fast as itself")
            doing.note(", ".join(noted))
        measured = [
            replace(
                one,
                speed=timed.speeds[one.name],
                speedup=timed.speedups.get(one.name),
                latency_ms=None if self._setting.smoke else timed.speeds[one.name].p50_ms["1"],
            )
            if one.model
            else one
            for one in candidates
        ]
        return measured, timed.clock_noise

    def _prune(self, section: PruneSection, parent: Candidate) -> Candidate:
        options = {"share": section.share, "method": section.method}
        name = f"fp32 pruned {section.share:.0%}"
        return self.make(Trial(name=name, precision="fp32", pass_name="prune", options=options), parent)

    def _keeps(self, candidate: Candidate) -> bool:
        """Say whether a candidate is shown to keep the budget."""
        return candidate.drop is not None and candidate.drop.bound <= self._setting.max_drop

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
        """Let a candidate answer its first row under limits, and look whether rows change each other's answers, on the
        rows that devices will try, too.

        Raises:
            CompileError: it takes more than the limits; or rows do, and the recipe refuses that.
        """
        recipe, what = self._setting.recipe, f"{self._what} {candidate.name}"
        limits = recipe_models.limits_of(recipe)
        self._steps.run_first(candidate.made, self._setting.data.ranges, doing, limits=limits, what=what)
        samples = golden_inputs.of_edge(self._setting.data.ranges)
        mixed = self._steps.rows_mixed_by(candidate.made, samples, doing, precision=candidate.precision)
        refuse_mixed(recipe, what, mixed)
        return replace(candidate, rows_mixed=mixed)

    def _drops_elsewhere(self, candidate: Candidate, doing: Doing, level: float) -> list[tuple[str, Drop]]:
        """Compare a candidate with its float parent at the other sizes; what is right there, no label says."""
        judge, found = self._setting.judge, []
        for (label, other), reference in zip(self._elsewhere, self._reference_elsewhere, strict=True):
            answered = self._answers(candidate, other, doing, f"{candidate.name} at {label}")
            mask = quality.mask_of(other.inputs)
            before, after = (judge.scores(one, reference, None, mask) for one in (reference, answered))
            clusters = (gate.by_cluster(scores, other.clusters) for scores in (before, after))
            found.append((label, gate.paired_drop(*clusters, level=level)))
        return found

    def _answers(self, candidate: Candidate, split: Split, doing: Doing, what: str) -> dict[str, Array]:
        setting = self._setting
        return self._steps.answers(
            candidate.made,
            split,
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
