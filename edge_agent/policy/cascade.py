"""Decides which rows the device may answer itself, and why. Pure: values in, values out.

Knows nothing of how rows travel: whether a row that should go up *may* go up is ``edge_agent.policy.egress``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

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
    """Names why a row was answered on the device or by the cloud. The strings are part of the API."""

    CONFIDENT = "confident"
    ESCALATED = "escalated"
    UNCERTIFIED = "uncertified"
    CLOUD_ONLY = "cloud_only"
    PRIVACY = "privacy"
    BUDGET = "budget"
    DEADLINE = "deadline"
    CLOUD_UNREACHABLE = "cloud_unreachable"


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
    """

    is_kept: list[bool]
    escalate_reason: Reason

    def part(self, start: int, stop: int) -> Decision:
        """Return the decision about rows ``start:stop``."""
        return Decision(self.is_kept[start:stop], self.escalate_reason)


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


def decide(scores: NDArray[np.float64], *, mode: CascadeMode, threshold: float) -> Decision:
    """Decide about rows [N] from their confidence scores [N].

    A row is kept when its score is *at least* the threshold, which is how harm was counted for the certificate (so a
    tie is kept). NaN, the score of an empty or malformed output, compares false and is never kept; a NaN threshold
    keeps nothing.
    """
    if mode is not CascadeMode.CASCADE:
        return Decision(is_kept=[False] * len(scores), escalate_reason=_ESCALATE_REASON[mode])
    return Decision(is_kept=(scores >= threshold).tolist(), escalate_reason=Reason.ESCALATED)


def drawn(randoms: Sequence[float], share: float) -> list[int]:
    """Return the rows that the audit draws: those whose random number in [0, 1) is below ``share``."""
    return [row for row, random in enumerate(randoms) if random < share]


def verdict(reasons: Sequence[Reason]) -> Verdict:
    """Say who answered a request and why, from its rows' reasons. Reasons are ordered from harmless to grave."""
    gravest = max(reasons, key=_RANK.__getitem__)
    by_cloud = sum(1 for reason in reasons if is_by_cloud(reason))
    served_by = "edge" if by_cloud == 0 else "cloud" if by_cloud == len(reasons) else "mixed"
    return Verdict(served_by=served_by, reason=gravest)


def least(scores: Sequence[float]) -> float:
    """Return the confidence of a request: its least confident row's. A row without a usable score (NaN) counts as 0."""
    total = sum(scores)
    return min(scores) if total == total else 0.0  # a sum with NaN is NaN, and NaN is not itself


def is_by_cloud(reason: Reason) -> bool:
    """Say whether a row with this reason carries the cloud's answer."""
    return reason in (Reason.ESCALATED, Reason.UNCERTIFIED, Reason.CLOUD_ONLY)


def usable_rows(outputs: Array) -> NDArray[np.bool_]:
    """Say which rows [N] of the cloud's scored output [N, ...] are an answer: finite everywhere, and not empty."""
    return confidence.finite_rows(outputs) if outputs.size else np.zeros(len(outputs), dtype=np.bool_)


def harm_count(edge: NDArray[np.int64], cloud: NDArray[np.int64]) -> int:
    """Count audited kept rows on which device and cloud disagree: harm without labels."""
    return int(np.count_nonzero(edge != cloud))
