"""What is known of a student when it is made: its curve, its figures on the validation rows, its export.

Pure but for the export's answers, which are given. The validation rows chose the best epoch, so these figures flatter;
what the artifact says of a student is measured on splits that chose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock import wording
from penstock.policy import confidence
from penstock.policy.confidence import Kind
from penstock.wire.tensors import Array

HARMS = (0.005, 0.01, 0.02, 0.05)
_BINS = 15
PARITY_TOLERANCE = 1e-3
"""Largest difference between the exported student and torch, relative to the largest logit (at least 1): float32 sums
in another order differ by about 1e-6 a layer, and a wrong export by much more than this."""


class Epoch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pass over the training rows.

    Attributes:
        correct: share of validation rows answered as the labels say; as the teacher does where there are none.
        phase: "distil", or "defer" for what ``distill.defer`` adds; their losses are not comparable.
    """

    phase: str
    epoch: int
    train_loss: float
    validation_loss: float
    correct: float
    lr: float


class Figures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A student on its validation rows.

    Attributes:
        accuracy: the student's share of right answers; None without labels.
        teacher_accuracy: the teacher's share of right answers; None without labels.
        agreement: share answered as the teacher does.
        temperature: fitted to the student's logits (Guo et al., arXiv 1706.04599); above 1 it was too sure.
        calibration_error: expected calibration error (15 bins) before that temperature.
        calibrated_error: the same after it.
        coverage_at_harm: for a share of all rows that may be kept and harmful, the share that can be kept.
    """

    rows: int
    accuracy: float | None
    teacher_accuracy: float | None
    agreement: float
    temperature: float
    calibration_error: float
    calibrated_error: float
    coverage_at_harm: dict[str, float]


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The account of a distillation, as JSON.

    Attributes:
        stop: why training ended: "epochs", "patience" or "time".
        best_epoch: the epoch whose weights were taken, counted over all phases from 1.
        left_out: rows that were not learned from because a held-out split has them too.
        largest_difference: between the exported student and torch over the validation rows, in ``batches`` of several
            sizes.
        settings: everything that decided the result: the recipe's table as used, seed and threads included.
    """

    schema: int = 1
    student: str
    teacher: str
    classes: int
    parameters: int
    train_rows: int
    validation_rows: int
    left_out: int
    split: str
    epochs: int
    best_epoch: int
    stop: str
    validation: Figures
    largest_difference: float
    batches: tuple[int, ...]
    size_bytes: int
    digest: str
    curve: tuple[Epoch, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


def judge(student: Array, teacher: Array, labels: NDArray[np.int64] | None) -> Figures:
    """Compute the figures of logits [N, C].

    Args:
        teacher: logits, or logarithms of probabilities, [N, C].
    """
    said, wanted = confidence.predicted(student), confidence.predicted(teacher)
    right = wanted if labels is None else labels
    temperature = confidence.fit_temperature(student, right)
    scores = confidence.score(student, kind="logits", temperature=temperature)
    return Figures(
        rows=len(student),
        accuracy=None if labels is None else float(np.mean(said == labels)),
        teacher_accuracy=None if labels is None else float(np.mean(wanted == labels)),
        agreement=float(np.mean(said == wanted)),
        temperature=float(f"{temperature:.4g}"),
        calibration_error=calibration_error(confidence.score(student, kind="logits"), said == right),
        calibrated_error=calibration_error(scores, said == right),
        coverage_at_harm={
            f"{harm:g}": coverage_at_harm(scores, (said != right) & (wanted == right), harm) for harm in HARMS
        },
    )


def coverage_at_harm(scores: NDArray[np.floating[Any]], harmful: NDArray[np.bool_], max_harm: float) -> float:
    """Return the largest share of rows that a threshold keeps while those that are kept and harmful are at most
    ``max_harm``.

    An observed share, no promise: that takes ``compiler.certificate.learn_then_test``. Rows with equal scores are kept
    together.
    """
    order = np.argsort(-scores, kind="stable")
    harm = np.cumsum(harmful[order]) / len(scores)
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    allowed = np.flatnonzero((harm <= max_harm) & last_of_equals)
    return float((allowed[-1] + 1) / len(scores)) if len(allowed) else 0.0


def calibration_error(scores: NDArray[np.floating[Any]], is_right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: mean over 15 equal bins of |share right - mean score|, weighted by rows.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    bins = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    gaps = [
        abs(float(np.sum(is_right[bins == index])) - float(np.sum(scores[bins == index]))) for index in np.unique(bins)
    ]
    return float(sum(gaps) / len(scores))


def difference(exported: Array, torch: Array, kind: Kind) -> float:
    """Return the largest difference between the exported student's output and torch's logits, by the scale of the
    logits.
    """
    expected = confidence.softmax(torch) if kind == "probabilities" else torch.astype(np.float64)
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(exported.astype(np.float64) - expected).max()) / scale


def summary(metrics: Metrics) -> str:
    """Return one line for people."""
    figures = metrics.validation
    how = ""
    if figures.accuracy is not None and figures.teacher_accuracy is not None:
        teacher = wording.percent(figures.teacher_accuracy)
        how = f"{wording.percent(figures.accuracy)} right (teacher {teacher}), "
    stop = {"epochs": "", "patience": ", no better since", "time": ", out of time"}[metrics.stop]
    return (
        f"{metrics.parameters:,} parameters, {how}{wording.percent(figures.agreement)} as the teacher on "
        f"{figures.rows} validation rows; {metrics.train_rows} rows, epoch {metrics.best_epoch} of "
        f"{metrics.epochs}{stop}"
    )


def decoded(epochs: list[Mapping[str, Any]]) -> tuple[Epoch, ...]:
    """Read the curve as the runner gives it."""
    return tuple(msgspec.convert(dict(epoch), Epoch) for epoch in epochs)
