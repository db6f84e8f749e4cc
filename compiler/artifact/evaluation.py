"""The evaluation document: every figure of a compilation, as the artifact carries it and the report shows it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from compiler.recipe.choices import Objective, Task
from penstock.artifact.certificates import Certificate, Harm

NOISY_CLOCK = 1.05
"""A clock by which a model is this much faster than itself is called noisy."""


class Drop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quality lost against the parent on the same ``n`` rows: a share of them; negative is a gain.

    Attributes:
        low: lower end of its 95% interval, which describes.
        high: upper end.
        lost: rows that only the parent answered well; where rows are scored, by how much it was better, summed.
        won: the same of the candidate.
        is_counted: whether every row is either good or not.
        bound: what the gate compares with the budget: with probability 1 - ``level`` the true loss is below it.
        level: the candidate's share of ``quality.delta``.
        at: the size of ``model.shapes`` at which most was lost; "" for that of the examples.
    """

    value: float
    low: float
    high: float
    n: int
    lost: float
    won: float
    is_counted: bool
    bound: float
    level: float
    at: str = ""


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of ``n`` rows with its exact 95% interval (Clopper-Pearson), or the mean of scores with a normal one."""

    value: float
    low: float
    high: float
    n: int


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where latencies were measured and golden outputs computed."""

    target: str
    processor: str
    cores: int
    onnxruntime: str


class Speed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one model costs on the machine that compiled: one thread, calls of all models in turn.

    Attributes:
        p50_ms: median of a call by batch size.
        memory_bytes: what a fresh process grew by to load and run it.
        at_sizes: median of a call with one row, in milliseconds, at the other sizes that the recipe lists
            (``width 160``); left out where it lists none.
    """

    p50_ms: dict[str, float]
    memory_bytes: int
    at_sizes: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class Speedup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many times as fast as its parent a model answers one row, with a 99% interval over calls in turns."""

    value: float
    low: float
    high: float


class Coverage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a candidate is integer.

    Attributes:
        integer_weight_bytes: constants that ended in 8 bits or fewer.
        float_weight_bytes: constants that were left in float.
        integer_nodes: matrix products and convolutions in integers, by operator, as onnxruntime executes them here.
        float_nodes: the same, in float.
    """

    integer_weight_bytes: int
    float_weight_bytes: int
    integer_nodes: dict[str, int]
    float_nodes: dict[str, int]


class CandidateFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate of one target, measured on the tuning split.

    Attributes:
        quality: share of rows answered well; ``metric`` of the target says what that is. None if it could not be made.
        drop: quality lost against the float parent; None for the parent itself.
        speed: None where the target cannot be run on this machine: nothing is guessed.
        speedup: None for the parent, and where calls were not made in turns.
        coverage: None for a float candidate.
        kept_float: operators that the gate sent back to float.
        verdict: "ships", or why it does not, in a sentence.
    """

    name: str
    precision: str
    size_bytes: int
    quality: Share | None
    drop: Drop | None
    speed: Speed | None
    speedup: Speedup | None
    coverage: Coverage | None
    kept_float: tuple[str, ...]
    summary: str
    ships: bool
    verdict: str


class SensitivityFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much noise int8 puts on one operator's output: signal to quantization noise, decibels; less is worse."""

    node: str
    operator: str
    sqnr_db: float


class CascadeFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cascade at its certified threshold, measured on the test split, which neither chose nor certified it.

    Attributes:
        coverage: share answered on the device.
        accuracy: the average grade where answers have one, else None without labels.
        harm: what the certificate bounds by ``max_harm``.
        disagreement: what an audit sees of it.
    """

    coverage: Share
    accuracy: Share | None
    harm: Share
    disagreement: Share


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of all examples of a split: ``coverage`` kept, and ``harm`` kept with harm, at ``threshold``."""

    threshold: float
    coverage: float
    harm: float


class ReliabilityBin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Test rows whose largest probability lies in one of ten bins: how sure they were, and how often right.

    Attributes:
        low: lower end of the exact 95% interval of ``accuracy``.
        high: its upper end.
    """

    confidence: float
    accuracy: float
    low: float
    high: float
    rows: int


class ScoreFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One confidence score, on the tuning split.

    Attributes:
        coverage: share expected to be kept within the promise's default level.
        auroc: chance that it is higher for a harmless answer than for a harmful one; None where there are not both.
        curve: (coverage, harm) from the surest answer on, shares of all examples.
        drafted_tokens: a request, that a device makes for answers which it then escalates; None where answers are not
            made token by token.
    """

    name: str
    coverage: float
    auroc: float | None
    curve: tuple[tuple[float, float], ...]
    drafted_tokens: float | None = None


class Interval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured value with its 95% interval."""

    value: float
    low: float
    high: float


class ProbeFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The head that was trained for a variant, or why there is none.

    Attributes:
        ships: whether it is part of the variant's graph.
        reason: why it is, or is not, in a sentence.
        features: the operator whose input it reads; "" where none was trained.
        width: how many features these are.
        gain: coverage on the tuning split against the best of the other scores, rows by heads that did not see them;
            None where the recipe names the score, or none was trained.
        cost: share of the time of a single-row call; None where it was not measured.
    """

    ships: bool
    reason: str
    features: str = ""
    width: int = 0
    gain: Interval | None = None
    cost: Interval | None = None


class CascadeEvaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cascade of one variant: what was tuned, what was certified, and what it does on the test split.

    Attributes:
        score: which was chosen.
        score_coverage: coverage on the tuning split that each score would have had.
        refusal: why there is no certificate; "" when there is one.
        curve_certify: risk against coverage on the certifying split, strictest threshold first.
        curve_test: the same on the test split.
        reliability: on the test split, after the temperature; empty without labels.
        scores: every score that was compared; the learned one by heads that did not see the row they score.
        probe: None where none was tried.
    """

    harm: Harm
    score: str
    score_coverage: dict[str, float]
    temperature: float
    certificate: Certificate | None
    refusal: str
    figures: CascadeFigures | None
    curve_certify: tuple[CurvePoint, ...]
    curve_test: tuple[CurvePoint, ...]
    reliability: tuple[ReliabilityBin, ...]
    scores: tuple[ScoreFigures, ...] = ()
    probe: ProbeFigures | None = None


class VariantFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ships, on the test split.

    Attributes:
        quality: share of rows answered well.
        agreement_cloud: share answered as the cloud does.
        ranking: for embeddings, Spearman's correlation of all pairwise similarities with the float model's.
        rows_mixed: which operator makes rows change each other's answers, so that they run one at a time; "" where
            they are independent.
    """

    role: str
    target: str
    precision: str
    digest: str
    size_bytes: int
    quality: Share
    agreement_cloud: Share
    ranking: float | None
    speed: Speed | None
    rows_mixed: str = ""


class TargetEvaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about one variant that was built: a rung of the cascade on a target.

    Attributes:
        parent: name of the float candidate that others are compared with.
        chosen: name of the one that ships.
        clock_noise: how much faster the parent seemed than itself when it was loaded and timed twice, in turns with the
            candidates (1.02 is 2%): what is no faster than that is not faster. None where nothing was timed in turns.
        cascade: None for a task that is not certified.
        not_measured: why nothing was timed or certified; "" where the target runs here.
    """

    role: str
    target: str
    objective: Objective
    metric: str
    max_drop: float
    parent: str
    chosen: str
    candidates: tuple[CandidateFigures, ...]
    sensitivity: tuple[SensitivityFigures, ...]
    clock_noise: float | None
    parent_test: VariantFigures
    variant: VariantFigures
    cascade: CascadeEvaluation | None
    not_measured: str


class SplitFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many rows a split has, and the digest of its examples."""

    rows: int
    digest: str


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything measured.

    Attributes:
        sources: how each role's model came to be, in words (read, exported, distilled).
        targets: device first.
        cloud: the cloud variant on the test split.
        generation: figures of a language model; empty for other tasks.
        judged_by: by which metric a row was scored, and by what it was right; the author's functions with the digest of
            their source. Empty for language models without a metric.
        repeats: what was found of examples that repeat or belong together, and what they are taken for; "" for nothing.
    """

    schema: Literal[2] = 2
    model: str
    version: str
    task: Task
    machine: Machine
    splits: dict[str, SplitFigures]
    sources: dict[str, str]
    targets: tuple[TargetEvaluation, ...]
    cloud: VariantFigures
    generation: dict[str, Any] = {}
    judged_by: dict[str, str] = {}
    repeats: str = ""


def encode(evaluation: Evaluation) -> bytes:
    """Write indented JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(evaluation, order="sorted"), indent=2) + b"\n"


def decode(data: bytes) -> Evaluation:
    """Read an evaluation.

    Raises:
        msgspec.ValidationError: another schema.
    """
    return msgspec.json.decode(data, type=Evaluation)
