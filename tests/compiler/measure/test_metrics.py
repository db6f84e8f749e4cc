"""Ready-made metrics: in [0, 1], 1 for what is right, against brute force and scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score, ndcg_score

from compiler.measure.metrics import METRICS, character_accuracy, edit_distance, f1, iou, map50, ndcg
from penstock.policy.decoding import Decoder, Decoding, Form

rows = st.integers(1, 5)


def answers_of(form: Form) -> st.SearchStrategy[NDArray[np.generic]]:
    shape = {"classes": (4,), "labels": (4,), "boxes": (3, 6), "text": (5, 3), "mask": (2, 3, 3)}.get(form, (4,))
    values = rows.flatmap(lambda n: hnp.arrays(np.float64, (n, *shape), elements=st.floats(-3, 3)))
    decoder = Decoder(output="y", kind="logits", decoding=Decoding(form=form))
    return values.map(lambda y: decoder.answers({"y": y, "token_ids": np.abs(y).astype(np.int64)}))


@settings(max_examples=30)
@pytest.mark.parametrize(("name", "form"), [(name, form) for name, m in METRICS.items() for form in m.forms])
@given(data=st.data())
def test_a_metric_is_in_the_unit_interval_does_not_look_at_other_rows_places_and_is_1_for_the_reference_itself(
    name: str, form: Form, data: st.DataObject
) -> None:
    metric = METRICS[name].function
    answers = data.draw(answers_of(form))
    references = answers[data.draw(st.permutations(range(len(answers))))]
    scores = metric(answers, references)
    assert scores.shape == (len(answers),)
    assert ((scores >= 0) & (scores <= 1 + 1e-9)).all()
    np.testing.assert_allclose(metric(answers, answers), 1)
    if name != "neighbours":  # whose ties go by place
        np.testing.assert_allclose(metric(answers[::-1], references[::-1]), scores[::-1])


def test_f1_of_a_row_is_scikit_learns() -> None:
    source = np.random.default_rng(0)
    found, wanted = (source.integers(0, 2, (40, 5)) for _ in range(2))
    theirs = [f1_score(w, f, zero_division=1.0) for f, w in zip(found, wanted, strict=True)]
    np.testing.assert_allclose(f1(found, wanted), theirs)


def test_iou_is_scikit_learns_jaccard_over_the_classes_that_are_there() -> None:
    source = np.random.default_rng(1)
    found, wanted = (source.integers(0, 3, (20, 4, 4)) for _ in range(2))
    theirs = [
        jaccard_score(w.ravel(), f.ravel(), average="macro", labels=np.union1d(f, w))
        for f, w in zip(found, wanted, strict=True)
    ]
    np.testing.assert_allclose(iou(found, wanted), theirs)
    ignored = np.where(found == wanted, wanted, -1)  # nothing that counts is wrong
    np.testing.assert_allclose(iou(found, ignored), 1)


def test_ndcg_is_scikit_learns_with_ties() -> None:
    source = np.random.default_rng(2)
    scores, grades = source.integers(0, 4, (50, 6)).astype(float), source.integers(0, 3, (50, 6))
    keep = np.ptp(grades, axis=1) > 0
    theirs = [ndcg_score([g], [s]) for s, g in zip(scores[keep], grades[keep], strict=True)]
    np.testing.assert_allclose(ndcg(scores, grades)[keep], theirs)


short = st.lists(st.integers(0, 3), max_size=6)


@given(short, short, short)
def test_edit_distance_is_a_metric(a: list[int], b: list[int], c: list[int]) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_character_error_is_clipped_and_an_empty_text_is_right_only_when_nothing_was_there() -> None:
    found = np.array([[1, 2, 3, -1], [1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, -1, -1], [-1] * 4])
    wanted = np.array([[1, 2, 2], [2, -1, -1], [-1, -1, -1], [-1, -1, -1], [1, 2, 3]])
    np.testing.assert_allclose(character_accuracy(found, wanted), [2 / 3, 0, 1, 0, 0])


def picture(*boxes: tuple[float, float, float, float, int, float]) -> NDArray[np.float64]:
    return np.array([[*boxes, *[(-1,) * 6] * (4 - len(boxes))]], dtype=np.float64)


WANTED = picture((0, 0, 10, 10, 0, 1), (20, 20, 30, 30, 0, 1), (50, 50, 60, 60, 1, 1))
PICTURES: Mapping[str, tuple[NDArray[np.float64], float]] = {
    "all found": (WANTED, 1.0),
    "nothing found": (picture(), 0.0),
    "a class missing": (picture((0, 0, 10, 10, 0, 0.9), (20, 20, 30, 30, 0, 0.8)), 0.5),
    "a wrong one surer than the right ones": (
        picture((80, 80, 90, 90, 0, 0.95), (0, 0, 10, 10, 0, 0.9), (20, 20, 30, 30, 0, 0.8), (50, 50, 60, 60, 1, 0.9)),
        (2 / 3 + 1) / 2,
    ),
    "the same one twice": (
        picture((0, 0, 10, 10, 0, 0.9), (0, 0, 10, 9, 0, 0.8), (20, 20, 30, 30, 0, 0.7), (50, 50, 60, 60, 1, 0.9)),
        ((1 + 2 / 3) / 2 + 1) / 2,
    ),
    "one of two, half beside": (
        picture((0, 0, 10, 10, 0, 0.9), (24, 20, 34, 30, 0, 0.8), (50, 50, 60, 60, 1, 0.9)),
        (1 / 2 + 1) / 2,
    ),
    "a class that is not there": (picture(*WANTED[0, :3].tolist(), (0, 0, 5, 5, 2, 0.4)), 2 / 3),
}


@pytest.mark.parametrize("case", PICTURES)
def test_average_precision_of_a_picture(case: str) -> None:
    found, expected = PICTURES[case]
    np.testing.assert_allclose(map50(found, WANTED[:, :, :5]), [expected])


def test_an_empty_picture_is_right_when_nothing_was_found() -> None:
    np.testing.assert_allclose(map50(np.concatenate([picture(), WANTED]), np.full((2, 1, 5), -1.0)), [1, 0])
