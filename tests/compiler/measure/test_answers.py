"""All rows are asked, in order, within the batch that a device makes; what is no number is refused."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.measure.answers import answers
from penstock.errors import CompileError
from penstock.policy.decoding import Decoder, Decoding
from tests.compiler.measure.doubling import Doubling

DECODER = Decoder(output="y", kind="logits")


def test_answers_are_all_rows_in_order_within_the_batch_limit() -> None:
    engine = Doubling()
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(answers(engine, {"x": x}, decoder=DECODER, max_batch=4, what="edge")["y"], x * 2)
    assert engine.batches == [4, 4, 2]


def test_a_model_that_answers_nan_is_refused_by_name() -> None:
    x = np.array([[1, np.nan]], dtype=np.float32)
    with pytest.raises(CompileError, match=r"cloud.onnx: output 'y' holds NaN"):
        answers(Doubling(), {"x": x}, decoder=DECODER, max_batch=4, what="cloud.onnx")


def test_large_outputs_are_read_batch_by_batch_and_say_the_same_as_all_at_once() -> None:
    x = np.random.default_rng(0).normal(size=(10, 3, 4))
    decoder = Decoder(output="y", kind="logits", decoding=Decoding(form="text"))
    found = answers(Doubling(), {"x": x}, decoder=decoder, max_batch=3, what="edge")
    assert "y" not in found
    whole = {"y": 2 * x}
    np.testing.assert_array_equal(decoder.answers(found), decoder.answers(whole))
    for name in decoder.scores:
        np.testing.assert_array_equal(decoder.score(found, name=name), decoder.score(whole, name=name))
