"""All rows are asked, in order, within the batch that a device makes; what is no number is refused."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.measure.answers import answers
from penstock.errors import CompileError
from tests.compiler.measure.doubling import Doubling


def test_answers_are_all_rows_in_order_within_the_batch_limit() -> None:
    engine = Doubling()
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(answers(engine, {"x": x}, output="y", max_batch=4, what="edge"), x * 2)
    assert engine.batches == [4, 4, 2]


def test_a_model_that_answers_nan_is_refused_by_name() -> None:
    x = np.array([[1, np.nan]], dtype=np.float32)
    with pytest.raises(CompileError, match=r"cloud.onnx: output 'y' holds NaN"):
        answers(Doubling(), {"x": x}, output="y", max_batch=4, what="cloud.onnx")
