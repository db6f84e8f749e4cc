"""What is tried for one goal, and how many looks at the tuning rows that is: known before anything is made.

Pure. Decides which trials a recipe and a target ask for, what each may be judged by, and which are not worth making.
They are made and measured by ``compiler.pipeline.array_candidates``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.data import Dataset, Split
from compiler.measure import gate
from compiler.measure.quality import Judge
from compiler.pipeline.cached_steps import Model
from compiler.pipeline.candidates import Candidate, Goal
from compiler.recipe.recipes import Recipe
from compiler.recipe.targets import Precision
from penstock import wording
from penstock.errors import GateRefused

CALIBRATORS = ("minmax", "percentile", "entropy")
ADVICE = (
    "Give more tuning rows (data.splits.tune, or a larger share of the data) or more typical calibration examples, "
    'allow more in quality.max_accuracy_drop, ask for size instead of speed (objective = "size"), or add the precision '
    '"fp32": then the original ships'
)
OUT_OF_TIME = "not tried: the time budget was used up (--budget)"
MAX_CHANGED_BYTES = 2 * 1024**3 - 1
AS_IT_IS = "as it is"
_FLOATS = ("fp32", "fp16")
AWARE = "int8 quantization-aware"
AWARE_PASS = "int8-qat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a student is fine-tuned with its rounding: the rows that it learned from, and the options of the pass."""

    rows: Split
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all candidates for a goal have in common.

    Attributes:
        source: the rung's model, as it came.
        judge: of answers.
        smoke: try one calibrator only.
        training: for a student that is to be fine-tuned with its rounding; None for any other model.
    """

    goal: Goal
    recipe: Recipe
    source: Model
    judge: Judge
    data: Dataset
    smoke: bool
    training: Training | None = None

    @property
    def is_changed(self) -> bool:
        """Say whether passes may change the model: a neural network in floats that fits into one message of protobuf
        (2 GiB). What its author has quantized is measured and served as it is.
        """
        return self.source.precision in _FLOATS and self.source.size_bytes <= MAX_CHANGED_BYTES

    @property
    def max_drop(self) -> float:
        """Return the share of quality that a candidate may cost; a trial of the recipe refuses nothing."""
        return 1.0 if self.smoke else self.recipe.quality.max_accuracy_drop

    @property
    def levels(self) -> gate.Levels:
        """Divide ``quality.delta`` among everything that may be looked at, before anything is.

        With pruning each counts twice, since it is made of the pruned model or not by what the tuning rows say of that.
        """
        tried = [trial for trial in trials(self) if not trial.is_parent]
        restores = self.recipe.quality.restore_operators and any(trial.precision == "int8" for trial in tried)
        bases = 1 if self.goal.rung.section.prune is None else 2
        count = bases * len(tried) + (bases - 1)
        return gate.levels(self.recipe.quality.delta, listed=count, restores=restores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate to be made: a pass with its options; no pass ships the model as it is."""

    name: str
    precision: Precision
    pass_name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_parent(self) -> bool:
        """Say whether it is the float parent itself, which costs nothing."""
        return self.pass_name in ("", "optimize")


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
        if precision == "int8" and _may_train(setting):
            found.append(_trained(setting, options))
    return tuple(found)


def _may_train(setting: Setting) -> bool:
    integers = setting.goal.target.integers
    return setting.training is not None and integers is not None and not integers.symmetric


def _trained(setting: Setting, options: Mapping[str, Any]) -> Trial:
    assert setting.training is not None
    asked = {**setting.training.options, "int8": dict(options)}
    return Trial(name=AWARE, precision="int8", pass_name=AWARE_PASS, options=asked)


def examples_for(trial: Trial, setting: Setting) -> Split:
    """Return the examples that a trial's pass gets: those that trained a student train it again."""
    if trial.pass_name == AWARE_PASS and setting.training is not None:
        return setting.training.rows
    return setting.data.ranges


def why_as_it_is(source: Model) -> str:
    """Say why no pass may change a source, for its line in the report; "" where that needs no saying."""
    if source.precision in (*_FLOATS, "none"):
        return ""
    return f"quantized already ({source.precision}): measured and served as it came"


def out_of_time(trial: Trial) -> Candidate | None:
    """Leave a trial out when the time budget is used up; the parent is there already."""
    if trial.is_parent:
        return None
    return Candidate(name=trial.name, precision=trial.precision, refusal=OUT_OF_TIME)


def as_before(trial: Trial, made: Sequence[Candidate]) -> Candidate | None:
    """Refuse a static int8 candidate where another could not be made: with other ranges it fails alike."""
    failed = next((one for one in made if one.precision == trial.precision == "int8" and one.model is None), None)
    if failed is None:
        return None
    refusal = f"not tried: {failed.name} could not be made, and other ranges do not change that"
    return Candidate(name=trial.name, precision=trial.precision, refusal=refusal)


def not_needed(trial: Trial, made: Sequence[Candidate], setting: Setting) -> Candidate | None:
    """Leave training out where the recipe wants it only if it is needed, and an int8 candidate keeps the budget."""
    section = setting.recipe.distill
    if trial.pass_name != AWARE_PASS or section is None or section.quantization_aware != "needed" or setting.smoke:
        return None  # in a trial of the recipe, an operator that cannot be trained through is to be found
    for one in made:
        if one.precision == "int8" and one.drop is not None and one.drop.bound <= setting.max_drop:
            refusal = f'not trained: {one.name} keeps the budget (distill.quantization_aware = "needed")'
            return Candidate(name=trial.name, precision=trial.precision, refusal=refusal)
    return None


def check_rows(setting: Setting, tried: Sequence[Trial]) -> None:
    """Refuse before the first calibration what so few tuning rows can never let ship.

    Raises:
        GateRefused: every candidate may cost quality, and too few rows show how much.
    """
    rows, fewest = setting.data.tune.units, gate.fewest_rows(setting.max_drop, setting.levels.listed)
    if any(trial.is_parent for trial in tried) or (fewest is not None and rows >= fewest):
        return
    count = "no number of rows is" if fewest is None else f"{fewest} are"
    raise GateRefused(
        f"refused: no candidate for {setting.goal.what} may ship. {rows} tuning rows are too few to show that one of "
        f"{len(tried)} candidates costs at most {wording.allowed(setting.max_drop)} points: {count} enough even if "
        f"none is answered worse. {ADVICE}"
    )
