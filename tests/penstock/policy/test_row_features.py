from __future__ import annotations

import numpy as np
import pytest

from penstock.policy.row_features import features


def test_few_columns_are_taken_whole_and_many_at_even_distances() -> None:
    picked = features({"x": np.arange(12.0).reshape(4, 3)}, {}, 4, max_features=5)
    assert list(picked) == ["x[0]", "x[1]", "x[2]"]
    assert picked["x[1]"].tolist() == [1.0, 4.0, 7.0, 10.0]
    image = np.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    picked = features({"image": image}, {}, 2, max_features=5)
    assert list(picked) == ["image[0]", "image[47]", "image[95]", "image[143]", "image[191]"]
    assert picked["image[191]"].tolist() == [191.0, 383.0]


def test_scores_of_classes_say_how_sure_and_what() -> None:
    logits = np.array([[0.0, 2.0], [3.0, 3.0]], np.float32)
    picked = features({}, {"logits": logits}, 2, max_features=5)
    assert picked["logits.prediction"].tolist() == [1.0, 0.0]
    assert picked["logits.confidence"] == pytest.approx([1 / (1 + np.exp(-2.0)), 0.5])
    shares = features({}, {"p": np.array([[0.9, 0.1]])}, 1, max_features=5)
    assert shares["p.confidence"].tolist() == [0.9]


def test_texts_are_followed_by_their_length_and_what_has_no_rows_is_left_out() -> None:
    texts = np.array([[b"four"], [b""]], dtype=object)
    picked = features({"text": texts, "scale": np.array(2.0)}, {"labels": np.array([[b"a"]], dtype=object)}, 2,
                      max_features=5)  # fmt: skip
    assert {name: column.tolist() for name, column in picked.items()} == {"text.length": [4.0, 0.0]}


def test_what_is_no_number_stays_none() -> None:
    with np.errstate(all="raise"):
        picked = features({}, {"logits": np.array([[np.nan, 1.0], [np.inf, 0.0]], np.float32)}, 2, max_features=5)
    assert np.isnan(picked["logits.confidence"]).any()
