"""Whether a promise says anything: is its cloud better than guessing, and better than the edge that it answers for.

Pure. A promise bounds what is lost against always asking the cloud. Against a cloud that is never right nothing can be
lost, so labels that are off by one, a model that was never trained or a broken import would be promised anything, with
every answer kept. Decides what is said of such a promise, and what is suspected; whether it is refused is
``compiler.certificate.issue``.

The tests are one-sided sign tests (exact, on the examples that only one of the two has right), and passing means shown:
a cloud that these examples do not show to be better is treated as one that is not. They look at the examples that
certify. That costs the promise nothing: they never let one pass that its own test refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.binomial import sign_test
from compiler.certificate.columns import CertifyData, Floats, Graded, Integers, differ
from penstock import wording
from penstock.artifact.caveats import Caveat, CaveatKind

Rows = NDArray[np.bool_]

LEVEL = 0.05
"""Chance that a cloud which is no better than guessing (than the edge) is called better."""

REFUSED: frozenset[CaveatKind] = frozenset({"cloud-guesses", "cloud-worthless"})
"""What a promise is refused for, unless that is told to be meant."""

_SUSPICION_LEVEL = 0.001
_SUSPICION_SHARE = 0.5  # what is suspected explains at least half of the answers
_ALIKE = 0.1  # an order finds what a shift explains, too: the simpler is said where it explains about as much
_NAMED = 3  # exchanged classes that a suspicion lists


def caveat(data: CertifyData, *, are_classes: bool = True) -> Caveat | None:
    """Find what has to be said before the promise; None where escalating is shown to gain accuracy.

    Args:
        data: the certifying examples, as they are certified. Without labels it can only be seen that the cloud gives
            one answer to all of them, or the edge the same answers.
        are_classes: whether predictions are classes. Of answers of other kinds, which are only right or wrong, no guess
            is known: being right at all, more often than by one chance in twenty, is better.
    """
    if data.graded is not None:
        return _of_grades(data, data.graded)
    edge, cloud, labels = data.edge_predictions, data.cloud_predictions, data.labels
    n, is_same = len(cloud), not differ(data).any()
    if labels is None:
        if are_classes and bool((cloud == cloud[0]).all()):
            return Caveat(kind="cloud-guesses", n=n)
        return Caveat(kind="same-answers", n=n) if is_same else None
    ours, theirs = _equal(edge, labels), _equal(cloud, labels)
    guess = _guesses(labels) if are_classes else np.zeros_like(theirs)
    kind: CaveatKind
    if _p_value(theirs, guess, data.clusters) > LEVEL:
        kind = "cloud-guesses"
    elif is_same:
        kind = "same-answers"
    elif _p_value(theirs, ours, data.clusters) > LEVEL:
        kind = "cloud-no-better"
    else:
        return None
    return Caveat(
        kind=kind,
        n=n,
        edge_right=_count(ours),
        cloud_right=_count(theirs),
        guess_right=_count(guess) if are_classes else None,
    )


def _of_grades(data: CertifyData, graded: Graded) -> Caveat | None:
    """Find it where answers are graded: is there anything good in the cloud's, and more than in the edge's?

    Without right answers the cloud's are worth 1 by definition, so that only their sameness can be seen.
    """
    n, nothing = len(graded.cloud), np.zeros(len(graded.cloud))
    is_known = data.labels is not None
    kind: CaveatKind
    if not is_known and bool((data.cloud_predictions == data.cloud_predictions[0]).all()):
        kind = "cloud-guesses"
    elif is_known and _p_value(graded.cloud, nothing, data.clusters) > LEVEL:
        kind = "cloud-worthless"
    elif not differ(data).any():
        kind = "same-answers"
    elif is_known and _p_value(graded.cloud, graded.edge, data.clusters) > LEVEL:
        kind = "cloud-no-better"
    else:
        return None
    return Caveat(kind=kind, n=n)


def reason(found: Caveat, data: CertifyData, *, are_classes: bool = True) -> str:
    """Say why a promise against a cloud that guesses is refused, what is suspected, and what to do."""
    if found.kind == "cloud-worthless":
        return (
            f"{found.words()} (one-sided sign test at {100 * LEVEL:g}%), and a promise of what is lost against them "
            "says nothing. Check model.metric and the answers that prompts have, or count harm against the cloud's own "
            'answers (certificate.harm = "disagreement"); if it is meant so, certificate.check_cloud = false certifies '
            "it all the same"
        )
    suspected = suspicion(data.cloud_predictions, data.labels) if are_classes and data.labels is not None else ""
    return (
        f"{found.words()} (one-sided sign test at {100 * LEVEL:g}%), and a promise of what is lost against it says "
        f"nothing. {suspected}Check labels, the order of classes, preprocessing and the import of the cloud's model, "
        "or give it examples of more than one kind; if it is meant so, certificate.check_cloud = false (certify: "
        "--unchecked-cloud) certifies it all the same"
    )


def suspicion(cloud: Integers, labels: Integers) -> str:
    """Say what would explain the cloud's answers: labels off by one, or classes in another order; "" for nothing."""
    shift, moved = max((float(np.mean(cloud == labels + shift)), shift) for shift in (1, -1))
    order = _order(cloud[::2], labels[::2])
    said, other = cloud[1::2], labels[1::2]  # what the order was not found on
    renamed = np.array([order.get(int(answer), int(answer)) for answer in said], dtype=np.int64)
    reordered = float(np.mean(renamed == other)) if len(said) else 0.0
    is_shifted = shift >= max(_SUSPICION_SHARE, reordered - _ALIKE)
    if is_shifted and _is_far_better(_equal(cloud, labels + moved), labels):
        words = "less" if moved == 1 else "more"
        return (
            f"For {wording.percent(shift)} of the examples the label is one {words} than the cloud's class: "
            "are labels counted from another number than classes, or has one of the two a class for the background? "
        )
    if reordered < _SUSPICION_SHARE or not _is_far_better(_equal(renamed, other), other):
        return ""
    pairs = [f"{answer} for {label}" for answer, label in sorted(order.items()) if answer != label]
    listed = ", ".join(pairs[:_NAMED]) + (", ..." if len(pairs) > _NAMED else "")
    return (
        f"With classes in another order ({listed}) the cloud is right for {wording.percent(reordered)} of them: is the "
        "order of model.labels, or of the folders, that of the model's outputs? "
    )


def _p_value(one: Rows | Floats, other: Rows | Floats, clusters: Integers | None = None) -> float:
    """Compute how likely ``one`` is right so much more often than ``other`` where it is not better; clusters are one
    throw each, for whichever is right more often in them.
    """
    ahead = np.asarray(one.astype(np.float64) - other)
    if clusters is not None:
        ahead = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=ahead).astype(np.float64)
    return sign_test(_count(ahead > 0), _count(ahead < 0))


def _is_far_better(right: Rows, labels: Integers) -> bool:
    return _p_value(right, _guesses(labels)) <= _SUSPICION_LEVEL


def _guesses(labels: Integers) -> Rows:
    """Say where the most frequent label is right."""
    values, counts = np.unique(labels, return_counts=True)
    return _equal(labels, values[counts.argmax()])


def _equal(one: Integers, other: Integers) -> Rows:
    return np.asarray(one == other)


def _order(cloud: Integers, labels: Integers) -> dict[int, int]:
    """Match each of the cloud's classes to one label, the pairs that are seen most first."""
    pairs, counts = np.unique(np.stack([cloud, labels]), axis=1, return_counts=True)
    found: dict[int, int] = {}
    for place in np.argsort(-counts, kind="stable"):
        answer, label = (int(value) for value in pairs[:, place])
        if answer not in found and label not in found.values():
            found[answer] = label
    return found


def _count(rows: Rows) -> int:
    return int(np.count_nonzero(rows))
