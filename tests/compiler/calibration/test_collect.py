"""Ranges of a graph's tensors: every row counts, in any batches, in bounded memory; onnxruntime's own as the oracle."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

from compiler.calibration.collect import Calibration, Settings, collect
from compiler.calibration.ranges import Calibrator
from penstock.errors import CalibrationError, CompileError
from tests.compiler import small_models as small

TENSORS = ("x", "z0", "h0", "z1", "h1", "logits")


def settings_for(calibrator: Calibrator, *, memory_bytes: int = 1 << 30, percent: float = 99.9) -> Settings:
    return Settings(calibrator=calibrator, percent=percent, symmetric=False, memory_bytes=memory_bytes)


def collected(
    x: np.ndarray, calibrator: Calibrator = "minmax", *, size: int = 64, memory_bytes: int = 1 << 30
) -> Calibration:
    model = small.mlp("wine").model
    return collect(model, TENSORS, small.batches(x, size), settings_for(calibrator, memory_bytes=memory_bytes))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return small.mlp("wine").fit


def expected_tensors(x: np.ndarray) -> dict[str, np.ndarray]:
    model = onnx.ModelProto()
    model.CopyFrom(small.mlp("wine").model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("z0", "h0", "z1", "h1"))
    session = small.ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {"x": x, **dict(zip(names, session.run(names, {"x": x}), strict=True))}


def test_minmax_is_numpys_on_all_rows(rows: np.ndarray) -> None:
    found = collected(rows)
    assert found.rows == len(rows)
    for name, values in expected_tensors(rows).items():
        assert found.ranges[name].low == pytest.approx(min(0, values.min()), rel=1e-6)
        assert found.ranges[name].high == pytest.approx(max(0, values.max()), rel=1e-6)


def test_percentile_is_numpys_on_all_rows(rows: np.ndarray) -> None:
    found = collect(small.mlp("wine").model, TENSORS, small.batches(rows), settings_for("percentile", percent=98))
    for name, values in expected_tensors(rows).items():
        low = min(0, np.percentile(values, 1, method="lower"))
        high = max(0, np.percentile(values, 99, method="higher"))
        assert found.ranges[name].low == pytest.approx(low, rel=1 / 100, abs=1e-6)
        assert found.ranges[name].high == pytest.approx(high, rel=1 / 100, abs=1e-6)


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
def test_batches_of_any_size_in_any_order_give_the_same_ranges(rows: np.ndarray, calibrator: Calibrator) -> None:
    whole = collected(rows, calibrator, size=len(rows))
    mixed = np.random.default_rng(0).permutation(rows)
    for size in (16, 33):
        found = collected(mixed, calibrator, size=size)
        for name in TENSORS:
            # products of other shapes may differ in their last bit, which may move a value to the next bin
            assert found.ranges[name].low == pytest.approx(whole.ranges[name].low, rel=1 / 100)
            assert found.ranges[name].high == pytest.approx(whole.ranges[name].high, rel=1 / 100)


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
def test_tensors_taken_in_turns_have_the_same_ranges(rows: np.ndarray, calibrator: Calibrator) -> None:
    together, alone = collected(rows, calibrator), collected(rows, calibrator, memory_bytes=1)
    assert (together.turns, alone.turns) == (1, len(TENSORS))
    assert alone.ranges == together.ranges


@settings(max_examples=8)
@given(st.integers(0, 88), st.integers(0, 12), st.sampled_from(["minmax", "entropy"]))
def test_one_extreme_value_anywhere_is_seen(row: int, column: int, calibrator: Calibrator) -> None:
    x = small.mlp("wine").fit.copy()
    x[row, column] = 1000
    found = collected(x, calibrator, size=10)
    assert found.rows == len(x)
    if calibrator == "minmax":
        assert found.ranges["x"].high == 1000


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    batch = {"x": np.random.default_rng(0).normal(size=(256, 13)).astype(np.float32)}

    def peak(count: int) -> int:
        tracemalloc.start()
        collect(small.mlp("wine").model, TENSORS, lambda: iter([batch] * count), settings_for("entropy"))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # imports and caches
    assert peak(40) < 1.2 * peak(4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_examples_that_no_range_holds_are_named(rows: np.ndarray, bad: float) -> None:
    x = rows.copy()
    x[40, 3] = bad
    with pytest.raises(CalibrationError, match="tensor 'x' has"):
        collected(x, size=16)


def test_an_infinity_that_the_model_makes_is_named(rows: np.ndarray) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small.mlp("wine").model)
    model.graph.node.append(helper.make_node("Exp", ["big"], ["huge"]))
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Mul", ["logits", "logits"], ["square"]))
    model.graph.node[-1].input[0] = "scaled"
    model.graph.node.insert(
        len(model.graph.node) - 1,
        helper.make_node("Mul", ["square", "factor"], ["scaled"]),
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e5, np.float32), "factor"))
    with pytest.raises(CalibrationError, match="tensor 'huge' has infinite values"):
        collect(model, ["huge"], small.batches(rows), settings_for("minmax"))


def test_empty_batches_change_nothing(rows: np.ndarray) -> None:
    def with_gaps() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(rows), 30):
            yield {"x": rows[:0]}
            yield {"x": rows[start : start + 30]}

    found = collect(small.mlp("wine").model, TENSORS, with_gaps, settings_for("percentile"))
    assert found.rows == len(rows)
    assert found.ranges == collected(rows, "percentile", size=30).ranges


@pytest.mark.parametrize("empty", [lambda: iter(()), lambda: iter([{"x": np.zeros((0, 13), np.float32)}])])
def test_no_rows_at_all_is_an_error(empty: Callable[[], Iterator[dict[str, np.ndarray]]]) -> None:
    with pytest.raises(CalibrationError, match="no examples"):
        collect(small.mlp("wine").model, TENSORS, empty, settings_for("minmax"))


def test_a_source_that_gives_other_rows_the_second_time_is_found_out(rows: np.ndarray) -> None:
    walks = iter([rows, rows, rows[:50]])
    with pytest.raises(CalibrationError, match="50 rows in a second walk over the examples, 89 in the first"):
        collect(
            small.mlp("wine").model,
            TENSORS,
            lambda: iter([{"x": next(walks)}]),
            settings_for("entropy"),
        )


def test_examples_of_another_shape_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="cannot run on these examples"):
        collect(small.mlp("wine").model, TENSORS, small.batches(rows[:, :5]), settings_for("minmax"))


def fixed(rows: int) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(small.mlp("wine").model)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = rows
    return model


def test_a_fixed_batch_is_fed_by_its_size(rows: np.ndarray) -> None:
    found = collect(fixed(1), TENSORS, small.batches(rows), settings_for("minmax"))
    assert found.rows == len(rows)
    assert found.ranges["x"] == collected(rows).ranges["x"]


def test_rows_that_do_not_fill_a_fixed_batch_are_refused_not_dropped(rows: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="exactly 4 rows at a time, and a batch has 25"):
        collect(fixed(4), TENSORS, small.batches(rows, 64), settings_for("minmax"))


def test_a_tensor_that_is_always_empty_is_named() -> None:
    model = small.graph([helper.make_node("Concat", ["x"], ["logits"], axis=1)], {}, x=["n", 3], y=["n", "m"])
    model.graph.node[0].input.append("past")
    model.graph.input.append(helper.make_tensor_value_info("past", TensorProto.FLOAT, ["n", "p"]))
    batch = {"x": np.ones((2, 3), np.float32), "past": np.ones((2, 0), np.float32)}
    with pytest.raises(CalibrationError, match="tensor 'past' has no element on any example"):
        collect(model, ["x", "past", "logits"], lambda: iter([batch]), settings_for("minmax"))


def test_a_graph_that_cannot_run_is_an_error_of_the_compiler() -> None:
    model = small.graph([helper.make_node("Relu", ["x"], ["logits"])], {}, x=["n", 3], y=["n", 3])
    model.graph.node[0].op_type = "Rellu"
    with pytest.raises(CompileError, match="cannot be run"):
        collect(model, ["logits"], small.batches(np.ones((2, 3), np.float32)), settings_for("minmax"))


def theirs(rows: np.ndarray, method: CalibrationMethod, tmp_path: Path, **options: object) -> dict[str, tuple]:
    class Feed:
        def __init__(self) -> None:
            self._batches = small.batches(rows, len(rows))()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    onnx.save(small.mlp("wine").model, tmp_path / "m.onnx")
    calibrator = create_calibrator(
        tmp_path / "m.onnx",
        [],
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=method,
        extra_options=options,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator.collect_data(Feed())
        found = calibrator.compute_data()
    return {name: tuple(np.asarray(value).item() for value in data.range_value) for name, data in found.items()}


def test_onnxruntimes_own_minmax_agrees(rows: np.ndarray, tmp_path: Path) -> None:
    found, oracle = collected(rows), theirs(rows, CalibrationMethod.MinMax, tmp_path)
    for name in TENSORS:
        assert found.ranges[name].low == pytest.approx(min(0, oracle[name][0]), rel=1e-6)
        assert found.ranges[name].high == pytest.approx(max(0, oracle[name][1]), rel=1e-6)


def test_onnxruntimes_own_percentile_agrees_within_its_bins(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3000, 13)).astype(np.float32)
    found = collect(small.mlp("wine").model, TENSORS, small.batches(x), settings_for("percentile", percent=98))
    oracle = theirs(x, CalibrationMethod.Percentile, tmp_path, percentile=98, symmetric=False)
    for name, values in expected_tensors(x).items():
        slack = float(np.abs(values).max() / 50)  # two of its bins, one of ours, and ranks half a value apart
        assert found.ranges[name].low == pytest.approx(min(0, oracle[name][0]), abs=slack)
        assert found.ranges[name].high == pytest.approx(max(0, oracle[name][1]), abs=slack)


def test_onnxruntimes_own_entropy_cuts_nothing_where_ours_does(tmp_path: Path) -> None:
    """With as many levels as bins there is one threshold to choose from: all of the first batch's range."""
    x = np.random.default_rng(0).normal(size=(2000, 13)).astype(np.float32)
    x[7, 7] = 80
    oracle = theirs(x, CalibrationMethod.Entropy, tmp_path)
    found = collected(x, "entropy", size=len(x))
    assert oracle["x"][1] == pytest.approx(80)
    assert found.ranges["x"].high < 20
