"""Golden vectors travel unchanged, and a machine that computes something else is found out."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.errors import ArtifactError
from penstock.wire import tensors

X = np.arange(6, dtype=np.float32).reshape(2, 3)
VECTORS = Golden(inputs={"x": X}, outputs={"x": X * 2, "label": np.array([1, 2])})


def test_round_trip_keeps_an_input_and_an_output_of_one_name_apart() -> None:
    back = golden.decode(golden.encode(VECTORS))
    np.testing.assert_array_equal(back.inputs["x"], X)
    np.testing.assert_array_equal(back.outputs["x"], X * 2)
    assert list(back.outputs) == ["x", "label"]


def test_same_vectors_same_bytes() -> None:
    assert golden.encode(VECTORS) == golden.encode(golden.decode(golden.encode(VECTORS)))


def test_calls_of_other_sizes_travel_too_and_the_first_is_written_as_ever() -> None:
    other = Golden(inputs={"x": X[:, :2]}, outputs={"x": X[:, :2] * 2})
    document = golden.encode(Golden(inputs=VECTORS.inputs, outputs=VECTORS.outputs, others=(other, VECTORS)))
    first, second, third = golden.decode(document).calls
    np.testing.assert_array_equal(second.inputs["x"], X[:, :2])
    assert [list(call.outputs) for call in (first, second, third)] == [["x", "label"], ["x"], ["x", "label"]]
    assert set(tensors.unpack(golden.encode(VECTORS))) < set(tensors.unpack(document))


def test_outputs_within_tolerance_agree() -> None:
    golden.check(VECTORS, {"x": X * 2 + np.float32(0.009), "label": np.array([1, 2])}, tolerance=0.01)


@pytest.mark.parametrize(
    ("produced", "message"),
    [
        ({"label": np.array([1, 2])}, "'x': nothing"),
        ({"x": X[:1], "label": np.array([1, 2])}, r"'x': float32\[1, 3\]"),
        ({"x": X.astype(np.float64) * 2, "label": np.array([1, 2])}, "'x': float64"),
        ({"x": X * 2 + np.float32(0.02), "label": np.array([1, 2])}, "off by 0.02"),
        ({"x": X * np.float32("nan"), "label": np.array([1, 2])}, "off by nan"),
        ({"x": X * 2, "label": np.array([1, 3])}, "'label' differs"),
    ],
)
def test_another_answer_is_refused(produced: dict[str, tensors.Array], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        golden.check(VECTORS, produced, tolerance=0.01)


def test_a_share_is_not_checked_by_a_tolerance_for_larger_numbers() -> None:
    sure = np.array([0.9, 0.2], np.float32)
    vectors = Golden(inputs={"x": X}, outputs={"x": X * 2, "probe": sure})
    produced = {"x": X * 2 + np.float32(0.3), "probe": sure - np.float32(0.04)}
    golden.check(vectors, produced, tolerance=0.4, shares=["probe"])
    with pytest.raises(ArtifactError, match="'probe' is off by 0.2, more than the 0.05 allowed"):
        golden.check(vectors, {**produced, "probe": sure - np.float32(0.2)}, tolerance=0.4, shares=["probe"])


@pytest.mark.parametrize("data", [b"", b"\x93garbage", tensors.pack({}), tensors.pack({"inputs/x": X})])
def test_a_document_that_proves_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="golden vectors"):
        golden.decode(data)
