from __future__ import annotations

import numpy as np
import pytest

from cloud_core.policy.redaction import redacted

TENSORS = {"x": np.arange(6.0).reshape(3, 2), "text": np.array([[b"an@b.c"], [b"d"], [b"an@b.c"]], dtype=object)}


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        ((), {"x", "text"}),
        (("mail/text",), {"x"}),
        (("*/text",), {"x"}),
        (("*",), set()),
        (("other/*",), {"x", "text"}),
    ],
)
def test_rules_name_tensors_of_models(drop: tuple[str, ...], kept: set[str]) -> None:
    assert set(redacted(TENSORS, "mail", drop=drop, hashed=())) == kept


def test_what_is_hashed_can_be_told_apart_and_not_read() -> None:
    found = redacted(TENSORS, "mail", drop=(), hashed=("mail/text",))
    first, second, third = found["text"].tolist()
    assert first == third != second
    assert len(first) == 32
    assert b"an@b.c" not in first


def test_what_is_dropped_is_dropped_though_it_is_hashed_too() -> None:
    assert redacted(TENSORS, "mail", drop=("*/text",), hashed=("*/text",)).keys() == {"x"}


def test_what_is_kept_is_a_copy() -> None:
    found = redacted(TENSORS, "mail", drop=(), hashed=())
    assert not np.shares_memory(found["x"], TENSORS["x"])
    (row,) = redacted({"x": np.array(3.0)}, "m", drop=(), hashed=("*",))["x"].tolist()
    assert len(row) == 32
