"""Decides which rows the device may answer itself, and why. Pure: values in, values out.

Knows nothing of how rows travel: whether a row that should go up *may* go up is ``edge_agent.policy.egress``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import numpy as np
from numpy.typing import NDArray

from penstock.policy import confidence
from penstock.wire.tensors import Array


class CascadeMode(StrEnum):
    """Names what the device may do with a model's answers."""

    CASCADE = "cascade"  # answers rows at or above the certified threshold
    ESCALATE_ALL = "escalate_all"  # no certificate that fits: everything goes to the cloud
    CLOUD_ONLY = "cloud_only"  # the audit crossed its bound: everything goes to the cloud


class Reason(StrEnum):
    """Names why a row got the answer that it got, from harmless to grave. The strings are part of the API."""

    CONFIDENT = "confident"
    ESCALATED = "escalated"
    ESCALATED_BY_PROMPT = "escalated_before_generation"
    UNCERTIFIED = "uncertified"
    CLOUD_ONLY = "cloud_only"
    PRIVACY = "privacy"
    BUDGET = "budget"
    DEADLINE = "deadline"
    CLOUD_UNREACHABLE = "cloud_unreachable"
    NOT_FINITE = "not_finite"


_RANK = {reason: rank for rank, reason in enumerate(Reason)}
_ESCALATE_REASON = {
    CascadeMode.CASCADE: Reason.ESCALATED,
    CascadeMode.ESCALATE_ALL: Reason.UNCERTIFIED,
    CascadeMode.CLOUD_ONLY: Reason.CLOUD_ONLY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeDecision:
    """Holds a mode.

    Attributes:
        why: in words, why it is not ``cascade``; "" when it is.
    """

    mode: CascadeMode
    why: str = ""


@dataclass(slots=True)
class Decision:
    """Says for each row whether the device's answer is kept.

    Attributes:
        is_kept: plain booleans, because it is sliced per request and most requests have one row.
        escalate_reason: the reason of the other rows, once the cloud answers them.
        is_finite: whether the row's inputs are finite numbers; () where all of them are, as in most batches.
    """

    is_kept: list[bool]
    escalate_reason: Reason
    is_finite: Sequence[bool] = ()

    def part(self, start: int, stop: int) -> Decision:
        """Return the decision about rows ``start:stop``."""
        return Decision(self.is_kept[start:stop], self.escalate_reason, self.is_finite[start:stop])

    def is_broken(self, row: int) -> bool:
        """Say whether the inputs of a row hold NaN or infinity."""
        return bool(self.is_finite) and not self.is_finite[row]


@dataclass(slots=True)
class RowOutcome:
    """Says what became of one row that was not kept at once.

    Attributes:
        is_by_cloud: the answer is the cloud's; else it is the device's own.
    """

    reason: Reason
    is_by_cloud: bool = False


KEPT = RowOutcome(Reason.CONFIDENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Sums one request up.

    Attributes:
        served_by: ``edge``, ``cloud`` or ``mixed``.
        reason: the gravest reason of its rows.
    """

    served_by: str
    reason: Reason


def choose_mode(
    *,
    certificate_problem: str,
    cloud_digest: str,
    seen_cloud_digest: str,
    has_crossed: bool,
    is_distrusted: bool = False,
) -> ModeDecision:
    """Choose the mode of one model. Level-triggered: call it whenever one of the values changes.

    Args:
        certificate_problem: why there is no certificate that may be used; "" when there is one.
        cloud_digest: the cloud variant that the certificate was issued for.
        seen_cloud_digest: the variant that gave the cloud's last answer; "" when it does not say or gave none yet.
        has_crossed: the audit's test has crossed its bound.
        is_distrusted: the fleet service said that the audits of all devices together did.
    """
    if certificate_problem:
        return ModeDecision(mode=CascadeMode.ESCALATE_ALL, why=certificate_problem)
    if has_crossed:
        return ModeDecision(
            mode=CascadeMode.CLOUD_ONLY, why="audited answers of the device show more harm than was certified"
        )
    if is_distrusted:
        return ModeDecision(
            mode=CascadeMode.CLOUD_ONLY, why="audited answers of the whole fleet show more harm than was certified"
        )
    if seen_cloud_digest and seen_cloud_digest != cloud_digest:
        return ModeDecision(
            mode=CascadeMode.ESCALATE_ALL,
            why=f"the cloud answers with variant {seen_cloud_digest}, the certificate was issued for {cloud_digest}",
        )
    return ModeDecision(mode=CascadeMode.CASCADE)


def finite_inputs(inputs: Mapping[str, Array], rows: int) -> NDArray[np.bool_] | None:
    """Find the rows [N] of a batch whose inputs are finite numbers; None where all of them are.

    Where an input has another number of rows, NaN or infinity in it speaks against every row.
    """
    found = None
    for array in inputs.values():
        if array.dtype.kind != "f":
            continue
        floats = cast("NDArray[np.float64]", array)  # as a string: the type itself would be made each time
        # the product is finite exactly when every number is, but for overflow; then the rows are looked at
        if not math.isfinite(np.vdot(floats, floats)):
            has_rows = array.shape[:1] == (rows,)
            is_finite = confidence.finite_rows(array) if has_rows else np.full(rows, np.isfinite(array).all())
            found = is_finite if found is None else found & is_finite
    return None if found is None or found.all() else found


def decide(
    scores: NDArray[np.float64], *, mode: CascadeMode, threshold: float, is_finite: Sequence[bool] = ()
) -> Decision:
    """Decide about rows [N] from their confidence scores [N].

    A row is kept when its score is *at least* the threshold, which is how harm was counted for the certificate (so a
    tie is kept). NaN, the score of an empty or malformed output, compares false and is never kept; a NaN threshold
    keeps nothing.

    Args:
        is_finite: whether the inputs of each row are finite numbers; () when all of them are.
    """
    if mode is not CascadeMode.CASCADE:
        return Decision([False] * len(scores), _ESCALATE_REASON[mode], is_finite)
    return Decision((scores >= threshold).tolist(), Reason.ESCALATED, is_finite)


def drawn(randoms: Sequence[float], share: float) -> list[int]:
    """Return the rows that the audit draws: those whose random number in [0, 1) is below ``share``."""
    return [row for row, random in enumerate(randoms) if random < share]


def evidence(rows: Sequence[int], decision: Decision, *, can_split: bool) -> list[int]:
    """Return the drawn rows that the promise is about: it was made for finite numbers.

    Broken rows are never kept, so they would only water the evidence down. A batch that goes up whole counts whole.
    """
    if not decision.is_finite or (all(decision.is_finite) and not can_split):
        return list(rows)
    return [row for row in rows if decision.is_finite[row]] if can_split else []


def counted(outcomes: Iterable[RowOutcome]) -> dict[str, int]:
    """Return the outcome counters that rows raise which were not kept at once."""
    rows = {"escalated": 0, "unreachable": 0, "not_finite": 0}
    for outcome in outcomes:
        is_odd = outcome.reason is Reason.NOT_FINITE
        rows["not_finite" if is_odd else "escalated" if outcome.is_by_cloud else "unreachable"] += 1
    return rows


def verdict(outcomes: Sequence[RowOutcome]) -> Verdict:
    """Say who answered a request and why, from what became of its rows. Reasons are ordered from harmless to grave."""
    gravest = max((outcome.reason for outcome in outcomes), key=_RANK.__getitem__)
    by_cloud = sum(outcome.is_by_cloud for outcome in outcomes)
    served_by = "edge" if by_cloud == 0 else "cloud" if by_cloud == len(outcomes) else "mixed"
    return Verdict(served_by=served_by, reason=gravest)


def least(scores: Sequence[float]) -> float:
    """Return the confidence of a request: its least confident row's. A row without a usable score (NaN) counts as 0."""
    total = sum(scores)
    return min(scores) if total == total else 0.0  # a sum with NaN is NaN, and NaN is not itself


def row_outcome(
    *, escalate_reason: Reason, failure: Reason, has_cloud: bool, is_broken: bool, is_usable: bool
) -> RowOutcome:
    """Say what became of one uncertain row.

    A broken sensor is not a broken network: where the row, or the device's own answer that goes out, holds NaN or
    infinity, that is the reason, whatever else went wrong.

    Args:
        escalate_reason: of a row that the cloud answers.
        failure: why the cloud did not.
        has_cloud: the cloud gave a usable answer.
        is_broken: the row's inputs are not finite.
        is_usable: the device's own answer is finite.
    """
    if is_broken or not (has_cloud or is_usable):
        return RowOutcome(Reason.NOT_FINITE, is_by_cloud=has_cloud)
    return RowOutcome(escalate_reason if has_cloud else failure, is_by_cloud=has_cloud)


def usable_rows(outputs: Array) -> NDArray[np.bool_]:
    """Say which rows [N] of the cloud's scored output [N, ...] are an answer: finite everywhere, and not empty."""
    return confidence.finite_rows(outputs) if outputs.size else np.zeros(len(outputs), dtype=np.bool_)
