"""Ready-made metrics: how good each answer is, from 0 to 1, compared with what it should have been.

Pure. A metric takes answers and references of one form (``penstock.policy.decoding``) with an entry a row, and gives a
score a row. References are labels, or without labels what the reference model answered. What a recipe's author writes
instead has the same signature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.policy import boxes, masks
from penstock.policy.decoding import Answers, Form, joined

Floats = NDArray[np.float64]
Function = Callable[[Answers, Answers], Floats]

REGRESSION_TOLERANCE = 0.05
"""A number agrees with its reference within this share of the references' own standard deviation."""

_OVERLAP = 0.5  # of mAP@50
_CLASS, _SCORE = 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of the table.

    Attributes:
        words: what it is called in a report.
        words_without_labels: the same, where references are another model's answers.
        about: what a row's score is.
        forms: of answers that it is for.
        right_at: score from which a row counts as right, unless the recipe says another.
    """

    words: str
    about: str
    function: Function
    forms: tuple[Form, ...]
    right_at: float = 1.0
    words_without_labels: str = ""

    def called(self, *, has_labels: bool) -> str:
        """Return what the mean of the rows' scores is called."""
        return self.words if has_labels or not self.words_without_labels else self.words_without_labels


def accuracy(answers: Answers, references: Answers) -> Floats:
    """Give 1 for an answer that is its reference exactly (a class, a set of labels, a text), else 0."""
    if answers.ndim == 1:
        return np.asarray(answers == references, dtype=np.float64)
    rows = joined([answers, references]).reshape(len(answers) * 2, -1)
    return np.asarray((rows[: len(answers)] == rows[len(answers) :]).all(axis=1), dtype=np.float64)


def f1(answers: Answers, references: Answers) -> Floats:
    """Give 2 x hits / (labels found + labels wanted) of each row's set of labels; 1 where both sets are empty."""
    found, wanted = answers > 0, references > 0
    hits = np.count_nonzero(found & wanted, axis=1)
    total = np.count_nonzero(found, axis=1) + np.count_nonzero(wanted, axis=1)
    return np.where(total == 0, 1.0, 2 * hits / np.maximum(total, 1))


def iou(answers: Answers, references: Answers) -> Floats:
    """Give intersection over union of each mask, averaged over the classes that it or its reference has."""
    return masks.overlap(answers, references)


def map50(answers: Answers, references: Answers) -> Floats:
    """Give the mean average precision of each picture at an overlap of 0.5, over the classes that are in it.

    Average precision is the area under the precision-recall curve, each precision the best at that recall or above, as
    in PASCAL VOC 2010 and later. A class that is found where there is none counts 0; a picture that is rightly empty 1.
    """
    return np.array([_picture(one, other) for one, other in zip(answers, references, strict=True)], dtype=np.float64)


def character_accuracy(answers: Answers, references: Answers) -> Floats:
    """Give 1 - (edit distance / length of the reference), at least 0, of each text, in characters or in tokens; 1 where
    both are empty.
    """
    scores = np.ones(len(answers))
    for row, (one, other) in enumerate(zip(answers, references, strict=True)):
        said, wanted = one[one != -1].tolist(), other[other != -1].tolist()
        distance = edit_distance(said, wanted)
        scores[row] = max(0.0, 1 - distance / len(wanted)) if wanted else float(not said)
    return scores


def ndcg(answers: Answers, references: Answers) -> Floats:
    """Give the normalised discounted cumulative gain of each row's ranking by the references' grades.

    Gains are the grades themselves, less the row's smallest where that is below 0; equally scored items share their
    places' discounts, so that their order in the file does not count. 1 where no item is worth more than another.
    """
    return np.array([_ndcg(one, other) for one, other in zip(answers, references, strict=True)], dtype=np.float64)


def neighbours(answers: Answers, references: Answers) -> Floats:
    """Give 1 for a vector whose nearest other row is the one that is nearest by the references, else 0."""
    return np.asarray(nearest(unit(answers)) == nearest(unit(references)), dtype=np.float64)


def within_tolerance(answers: Answers, references: Answers) -> Floats:
    """Give 1 where every number is within 5% of the standard deviation of its column of references, else 0."""
    numbers = answers.astype(np.float64).reshape(len(answers), -1)
    wanted = references.astype(np.float64).reshape(len(references), -1)
    allowed = REGRESSION_TOLERANCE * wanted.std(axis=0)
    return np.asarray((np.abs(numbers - wanted) <= np.maximum(allowed, 1e-6)).all(axis=1), dtype=np.float64)


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(
        words="accuracy",
        words_without_labels="agreement",
        about="1 where the class, the set of labels, the text or all of its tokens are exactly right",
        function=accuracy,
        forms=("classes", "labels", "text", "tokens"),
    ),
    "f1": Metric(
        words="F1 a row",
        about="2 x hits / (labels found + labels wanted) of the row's set; 1 where both are empty",
        function=f1,
        forms=("labels",),
    ),
    "map50": Metric(
        words="mAP@50 a picture",
        about="average precision at an overlap of 0.5, averaged over the classes in the picture",
        function=map50,
        forms=("boxes",),
        right_at=0.5,
    ),
    "iou": Metric(
        words="IoU",
        about="intersection over union of the mask, averaged over the classes in it or its reference",
        function=iou,
        forms=("mask",),
        right_at=0.5,
    ),
    "character_accuracy": Metric(
        words="1 - character error",
        about="1 - edit distance / length of the reference, at least 0",
        function=character_accuracy,
        forms=("text",),
    ),
    "token_accuracy": Metric(
        words="1 - token error",
        about="1 - edit distance in tokens / length of the reference, at least 0",
        function=character_accuracy,
        forms=("tokens",),
    ),
    "ndcg": Metric(
        words="nDCG",
        about="normalised discounted cumulative gain of the whole ranking",
        function=ndcg,
        forms=("ranking",),
        right_at=0.9,
    ),
    "within_tolerance": Metric(
        words="within tolerance",
        about="1 where every number is within 5% of its references' standard deviation",
        function=within_tolerance,
        forms=("numbers",),
    ),
    "neighbours": Metric(
        words="nearest neighbour kept",
        about="1 where the nearest other row is the one that is nearest by the references",
        function=neighbours,
        forms=("vectors",),
    ),
}


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the insertions, deletions and replacements that make one sequence the other (Levenshtein)."""
    before = list(range(len(other) + 1))
    for row, item in enumerate(one, 1):
        now = [row]
        for column, wanted in enumerate(other, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (item != wanted)))
        before = now
    return before[-1]


def unit(values: Answers) -> Floats:
    """Return vectors [N, H] of length 1."""
    wide = values.astype(np.float64).reshape(len(values), -1)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def nearest(vectors: Floats) -> NDArray[np.int64]:
    """Find the most similar other row of each unit vector [N, H], int64 [N]; in blocks, so that N may be large."""
    found = np.zeros(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), 1024):
        similarity = vectors[start : start + 1024] @ vectors.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -np.inf
        found[start : start + 1024] = similarity.argmax(axis=1)
    return found


def _picture(found: Answers, wanted: Answers) -> float:
    found, wanted = boxes.filled(found), boxes.filled(wanted)
    classes = np.union1d(found[:, _CLASS], wanted[:, _CLASS])
    if not len(classes):
        return 1.0
    return float(np.mean([_precision(*(b[b[:, _CLASS] == one] for b in (found, wanted))) for one in classes]))


def _precision(found: Answers, wanted: Answers) -> float:
    """Return the average precision of one class in one picture; each wanted box is found once, by the surest."""
    if not len(found) or not len(wanted):
        return 0.0
    order = np.argsort(-found[:, _SCORE], kind="stable")
    shared = boxes.overlaps(found[order], wanted)
    hits = np.zeros(len(found))
    for at, row in enumerate(shared):
        best = int(row.argmax())
        if row[best] >= _OVERLAP:
            hits[at] = 1
            shared[at + 1 :, best] = 0
    got = np.cumsum(hits)
    precision = np.maximum.accumulate((got / np.arange(1, len(got) + 1))[::-1])[::-1]
    return float((precision * hits).sum() / len(wanted))


def _ndcg(scores: Answers, grades: Answers) -> float:
    gains = grades.astype(np.float64) - min(0.0, float(grades.min(initial=0.0)))
    discounts = np.array([1 / math.log2(place + 2) for place in range(len(gains))])
    ideal = float((np.sort(gains)[::-1] * discounts).sum())
    if ideal == 0 or np.ptp(gains) == 0:
        return 1.0
    _, tied, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared = [discounts[end - count : end].mean() for end, count in zip(ends, counts, strict=True)]
    return float((gains * np.array(shared)[tied.ravel()]).sum() / ideal)
