"""Puts the response to one request together: the cloud's rows among the device's, and the account of who gave them.

Asks nobody and decides nothing: what became of a row is ``edge_agent.policy.cascade``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.policy import cascade
from edge_agent.policy.cascade import KEPT, Reason, RowOutcome
from edge_agent.serving.escalation_queue import CloudAnswer
from edge_agent.serving.local_queue import LocalAnswer
from penstock.wire.inference import Parameter
from penstock.wire.tensors import Array

EXPLAIN_OUTPUTS = ("penstock_served_by", "penstock_confidence", "penstock_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalated:
    """What became of uncertain rows that were to go up in one call.

    Attributes:
        wanted: the rows, as indices into the request.
        rows: those of them that were sent. ``answer`` has a row for each, and ``usable`` says which of these are
            answers; ``failure`` is the reason of those that are not.
        refused: the reason of those that were not sent.
        is_final: the cloud answered or refused these rows: another try would end alike.
    """

    wanted: Sequence[int]
    rows: Sequence[int] = ()
    answer: CloudAnswer | None = None
    usable: Sequence[bool] = ()
    failure: Reason = Reason.CLOUD_UNREACHABLE
    refused: Reason = Reason.CLOUD_UNREACHABLE
    is_final: bool = False

    @property
    def answered(self) -> dict[int, int]:
        """Return the rows that the cloud answered, each with its place in the answer."""
        return {row: place for place, row in enumerate(self.rows) if self.usable and self.usable[place]}

    def why_not(self, row: int) -> Reason:
        """Say why the cloud did not answer a row, where it did not."""
        return self.failure if row in self.rows else self.refused


def outcomes(local: LocalAnswer, asked: Sequence[Escalated], score_output: str) -> list[RowOutcome]:
    """List what became of every row of a request."""
    found = [KEPT] * len(local.scores)
    usable = _usable(local.outputs.get(score_output), len(found))
    for call in asked:
        answered, sent = call.answered, frozenset(call.rows)
        for row in call.wanted:
            found[row] = cascade.row_outcome(
                escalate_reason=local.decision.escalate_reason,
                failure=call.failure if row in sent else call.refused,
                has_cloud=row in answered,
                is_broken=local.decision.is_broken(row),
                is_usable=usable[row],
            )
    return found


def merged(outputs: Mapping[str, Array], asked: Sequence[Escalated], rows: int) -> Mapping[str, Array]:
    """Put the cloud's rows into their places among the device's."""
    for call in asked:
        if call.answer is None:
            continue
        cloud, answered = call.answer.outputs, call.answered
        if len(answered) == rows:
            return {name: cloud[name] for name in outputs}
        if answered:
            rest = outputs
            outputs = {name: array.copy() for name, array in rest.items()}
            for name, array in outputs.items():
                array[list(answered)] = cloud[name][list(answered.values())]
    return outputs


def account(scores: Sequence[float], outcomes: Sequence[RowOutcome]) -> dict[str, Parameter]:
    """Return the response parameters that say who answered and why."""
    verdict = cascade.verdict(outcomes)
    return {
        "served_by": verdict.served_by,
        "confidence": cascade.least(scores),
        "reason": verdict.reason.value,
        "rows_escalated": sum(outcome.is_by_cloud for outcome in outcomes),
    }


def explanation(scores: Sequence[float], outcomes: Sequence[RowOutcome]) -> dict[str, Array]:
    """Make three outputs [N]: who answered (BYTES), confidence (FP32, 0 for no usable score), reason (BYTES)."""
    served_by = [b"cloud" if outcome.is_by_cloud else b"edge" for outcome in outcomes]
    arrays: tuple[Array, ...] = (
        np.array(served_by, dtype=object),
        np.array([0.0 if math.isnan(score) else score for score in scores], dtype=np.float32),
        np.array([outcome.reason.value.encode() for outcome in outcomes], dtype=object),
    )
    return dict(zip(EXPLAIN_OUTPUTS, arrays, strict=True))


def _usable(scored: Array | None, rows: int) -> Sequence[bool]:
    """Say which rows of the device's scored output are finite; a malformed one is not to be told apart by rows."""
    if scored is None or scored.shape[:1] != (rows,):
        return [True] * rows
    usable: list[bool] = cascade.usable_rows(scored).tolist()
    return usable
