"""The examples that a promise is certified on, as columns: scores, what both models said, labels, groups.

Pure. Decides what counts as harm, and which columns are malformed. What they prove is
``compiler.certificate.learn_then_test``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.artifact.certificates import MAX_GROUPS
from penstock.errors import CalibrationError

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]

_MAX_GROUP_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graded:
    """How good each answer is in somebody's opinion: numbers in [0, 1], one an example.

    Attributes:
        edge: of the edge's answers [N], by the right ones; as ``alike`` where none are known.
        cloud: of the cloud's answers [N], in the same way; 1 where no right ones are known.
        alike: of the edge's answers [N], by the cloud's: all that can be seen in service.
    """

    edge: Floats
    cloud: Floats
    alike: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CertifyData:
    """The certifying split, one entry an example.

    Attributes:
        scores: float [N] in [0, 1]; NaN for an answer that must never be kept.
        edge_predictions: integer classes [N].
        cloud_predictions: integer classes [N].
        labels: integer classes [N]; None counts disagreement with the cloud as harm.
        groups: names [N] (array of str) of the groups that each shall keep the promise; None for the promise over all.
        agreed: bool [N], whether a device would take both answers for the same; None where that is whether the classes
            are equal. Two sets of boxes may both be right without being the same.
        clusters: integers [N], equal for examples that belong together; None where each is independent of the others.
        graded: how good answers are, where that is more than right or wrong: harm is then by how much the edge's is
            worse than the cloud's, and classes only say which answers are the same.
    """

    scores: NDArray[np.floating]
    edge_predictions: Integers
    cloud_predictions: Integers
    labels: Integers | None = None
    groups: NDArray[np.str_] | None = None
    agreed: NDArray[np.bool_] | None = None
    clusters: Integers | None = None
    graded: Graded | None = None


def differ(data: CertifyData) -> NDArray[np.bool_]:
    """Say to which examples [N] edge and cloud gave different answers: what an audit in service sees."""
    if data.graded is not None:
        return np.asarray(data.graded.alike < 1)
    return np.asarray(data.edge_predictions != data.cloud_predictions) if data.agreed is None else ~data.agreed


def difference(data: CertifyData) -> Floats:
    """Say by how much [N] the edge's answers differ from the cloud's, from 0 to 1; 0 or 1 where answers are right or
    wrong.
    """
    return differ(data).astype(np.float64) if data.graded is None else 1 - data.graded.alike


def harm(data: CertifyData) -> Floats:
    """Say how harmful [N] each example is if it is kept, from 0 to 1; 0 or 1 where answers are right or wrong."""
    if data.graded is None:
        return harmful(data).astype(np.float64)
    return np.maximum(data.graded.cloud - data.graded.edge, 0.0)


def harmful(data: CertifyData) -> NDArray[np.bool_]:
    """Say which examples [N] are harm if they are kept, however little."""
    if data.graded is not None:
        return np.asarray(harm(data) > 0)
    if data.labels is None:
        return differ(data)
    return np.asarray((data.edge_predictions != data.labels) & (data.cloud_predictions == data.labels))


def counts_at(grid: Floats, scores: NDArray[np.floating], among: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Count the examples (of those in ``among``) that are kept at each threshold; a score equal to it is kept, NaN
    never.
    """
    counted = ~np.isnan(scores) if among is None else among & ~np.isnan(scores)
    ascending = np.sort(scores[counted].astype(np.float64))  # float32 against the grid would round the threshold
    return np.asarray(len(ascending) - np.searchsorted(ascending, grid, side="left"), dtype=np.int64)


def check(data: CertifyData) -> None:
    """Check the columns.

    Raises:
        CalibrationError: which column is malformed, and what was expected.
    """
    scores = data.scores
    if scores.dtype.kind != "f" or scores.ndim != 1 or len(scores) == 0:
        raise CalibrationError(f"scores: {scores.dtype} {list(scores.shape)}, expected floats [N] with N >= 1")
    outside = int(np.count_nonzero((scores < 0) | (scores > 1)))
    if outside:
        raise CalibrationError(f"scores: {outside} of {len(scores)} are infinite or outside [0, 1]")
    columns = {"edge_predictions": data.edge_predictions, "cloud_predictions": data.cloud_predictions}
    if data.labels is not None:
        columns["labels"] = data.labels
    if data.clusters is not None:
        columns["clusters"] = data.clusters
    for name, column in columns.items():
        if column.dtype.kind not in "iu" or column.shape != scores.shape:
            what = "integers" if name == "clusters" else "integer classes"
            raise CalibrationError(f"{name}: {column.dtype} {list(column.shape)}, expected {what} [{len(scores)}]")
    if data.agreed is not None and (data.agreed.dtype != np.bool_ or data.agreed.shape != scores.shape):
        raise CalibrationError(
            f"agreed: {data.agreed.dtype} {list(data.agreed.shape)}, expected truth values [{len(scores)}]"
        )
    if data.graded is not None:
        for name in ("edge", "cloud", "alike"):
            _check_grades(getattr(data.graded, name), name, len(scores))
    if data.groups is not None:
        _check_groups(data.groups, len(scores))


def _check_grades(grades: NDArray[np.floating], name: str, n: int) -> None:
    if grades.dtype != np.float64 or grades.shape != (n,):
        raise CalibrationError(f"graded.{name}: {grades.dtype} {list(grades.shape)}, expected float64 [{n}]")
    outside = int(np.count_nonzero(~((grades >= 0) & (grades <= 1))))  # NaN too
    if outside:
        raise CalibrationError(f"graded.{name}: {outside} of {n} are no numbers from 0 to 1")


def _check_groups(groups: NDArray[np.str_], n: int) -> None:
    if groups.dtype.kind != "U" or groups.shape != (n,):
        raise CalibrationError(f"groups: {groups.dtype} {list(groups.shape)}, expected names [{n}]")
    names = np.unique(groups).tolist()
    if len(names) > MAX_GROUPS:
        raise CalibrationError(
            f"groups: {len(names)} different ones, at most {MAX_GROUPS} can each be given a promise (is it a column of "
            "numbers?); merge some"
        )
    long = next((name for name in names if not 1 <= len(name) <= _MAX_GROUP_NAME), None)
    if long is not None:
        raise CalibrationError(f"groups: {long[:60]!r} is no name; expected 1 to {_MAX_GROUP_NAME} characters")
