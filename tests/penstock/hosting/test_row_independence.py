"""Rows that change each other's answers run one at a time, however the graph mixes them; others are batched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from penstock.artifact.variant_files import VariantFiles
from penstock.errors import InvalidInput, PenstockError
from penstock.hosting import loading, row_independence
from penstock.hosting.loading import Loaded
from penstock.hosting.replica import Chunk, outputs_replica
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array, TensorSpec
from tests.factories import variant_spec
from tests.penstock.hosting import mixing_graphs as graphs
from tests.penstock.hosting import text_graphs

X = TensorSpec(name="x", datatype="FP32", shape=(-1, graphs.FEATURES))
LOGITS = TensorSpec(name="logits", datatype="FP32", shape=(-1, graphs.CLASSES))


def load(directory: Path, model: onnx.ModelProto, *, max_batch: int = 16) -> Loaded:
    onnx.save(model, directory / "m.onnx")
    spec = variant_spec(inputs=(X,), outputs=(LOGITS,), engine="onnx", precision="fp32", max_batch=max_batch)
    return loading.load(spec, VariantFiles(weights=directory / "m.onnx", golden=None), threads=1)


@pytest.mark.parametrize("kind", graphs.MIXING)
def test_rows_that_change_each_other_run_one_at_a_time_also_within_a_request(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(tmp_path, graphs.MIXING[kind][0]())
    assert loaded.max_batch == 1
    assert "output 'logits' of a row changes beside" in loaded.rows_mixed
    assert "one at a time" in caplog.text
    asked = graphs.rows(3)
    alone = np.concatenate([loaded.engine.run({"x": asked[at : at + 1]})["logits"] for at in range(3)])
    asked_beside = np.concatenate([asked, np.full((1, graphs.FEATURES), 1e30, np.float32)])

    async def answered() -> Mapping[str, Array]:
        replica = outputs_replica(loaded, on_loop_below_s=1.0)
        try:
            (found,) = await replica.run([Chunk(inputs={"x": asked_beside}, rows=4)])
        finally:
            await replica.close()
        assert not isinstance(found, PenstockError)
        return found

    np.testing.assert_allclose(asyncio.run(answered())["logits"][:3], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", graphs.INDEPENDENT)
def test_rows_that_are_independent_are_batched(tmp_path: Path, kind: str) -> None:
    loaded = load(tmp_path, graphs.INDEPENDENT[kind]())
    assert (loaded.max_batch, loaded.rows_mixed) == (16, "")


def test_a_spec_that_says_one_row_is_believed_and_nothing_is_tried(tmp_path: Path) -> None:
    loaded = load(tmp_path, graphs.MIXING["mean over rows"][0](), max_batch=1)
    assert (loaded.max_batch, loaded.rows_mixed) == (1, "")


class Halving:
    """Answers with half of what it is given; counts its rows, and refuses what is not finite if it is told to."""

    def __init__(self, *, refuses: bool = False, alone: bool = True, shape: tuple[int, ...] = (-1, 4)) -> None:
        self.inputs: Sequence[TensorSpec] = (TensorSpec(name="x", datatype="FP32", shape=shape),)
        self.outputs = self.inputs
        self.rows = 0
        self._refuses, self._alone = refuses, alone

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.rows += len(inputs["x"])
        if self._refuses and not np.isfinite(inputs["x"]).all():
            raise InvalidInput("not finite")
        if len(inputs["x"]) == 1 and not self._alone:
            raise InvalidInput("two rows at least")
        return {"x": inputs["x"] / 2}


def look(engine: Halving, *, max_batch: int = 64) -> row_independence.Finding:
    return row_independence.look(engine.run, engine, {}, precision="fp32", max_batch=max_batch)


def test_the_look_takes_few_rows() -> None:
    engine = Halving()
    assert look(engine).reason == ""
    assert engine.rows == 4 + 6 * 8


@pytest.mark.parametrize("engine", [Halving(refuses=True), Halving(shape=(4, 4))], ids=["refuses NaN", "fixed batch"])
def test_what_a_model_refuses_or_never_merges_mixes_nothing(engine: Halving) -> None:
    assert look(engine).reason == ""


def test_a_model_that_takes_no_single_row_is_not_called_independent() -> None:
    assert "cannot be tried alone: two rows at least" in look(Halving(alone=False)).reason


def test_a_batch_of_two_is_looked_at_with_one_row_and_one_neighbour() -> None:
    engine = Halving()
    look(engine, max_batch=2)
    assert engine.rows == 1 + 6 * 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_extremes_are_as_large_as_the_numbers_allow(dtype: type[np.floating]) -> None:  # type: ignore[type-arg]
    rows = {"x": np.ones((2, 3), dtype)}
    largest = max(np.nanmax(company.batch["x"].astype(np.float64)) for company in row_independence.companies(rows))
    assert np.isfinite(largest)
    assert largest >= 60000


def test_whole_numbers_never_leave_what_was_given() -> None:
    rows = {"ids": np.array([[3, 4], [5, 6]]), "x": np.ones((2, 1), np.float32)}
    for company in row_independence.companies(rows):
        assert set(company.batch["ids"].ravel()) <= {3, 4, 5, 6}


@pytest.mark.parametrize("text", [b"eins zwei", "eins zwei"], ids=["bytes", "str"])
def test_rows_that_a_longer_text_changes_are_found_though_all_samples_are_equal(
    tmp_path: Path, text: bytes | str
) -> None:
    onnx.save(text_graphs.longest(), tmp_path / "m.onnx")
    engine = load_engine("onnx", tmp_path / "m.onnx", EngineOptions(threads=1))
    samples = {"x": np.full((4, 1), text, dtype=object)}
    found = row_independence.look(engine.run, engine, samples, precision="fp32", max_batch=64)
    assert found.reason == "output 'logits' of a row changes beside long text"


def test_texts_that_are_looked_up_one_by_one_are_independent(tmp_path: Path) -> None:
    onnx.save(text_graphs.embedding(), tmp_path / "m.onnx")
    engine = load_engine("onnx", tmp_path / "m.onnx", EngineOptions(threads=1))
    samples = {"x": np.array(text_graphs.WORDS[:16], dtype=object).reshape(8, 2)}
    assert row_independence.look(engine.run, engine, samples, precision="fp32", max_batch=64).reason == ""
