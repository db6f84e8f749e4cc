"""Weights in 4 and 8 bits: the numbers, how onnxruntime stores and runs them, and that nothing is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits
from sklearn.datasets import load_digits

from compiler.passes.weights import awq, blockwise, gptq, weights_only
from penstock.errors import CalibrationError, CompileError, ConfigError
from tests.compiler.passes import build, graphs

node = helper.make_node
BITS = pytest.mark.parametrize("bits", [4, 8])
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False])


def heavy(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Weights with outliers, as trained ones have."""
    return (np.random.default_rng(seed).standard_t(3, (rows, columns)) * 0.05).astype(np.float32)


def linear(weight: NDArray[np.float32], kind: str = "MatMul") -> onnx.ModelProto:
    rows, columns = weight.shape
    inputs = ["x", "w", "b"] if kind == "Gemm" else ["x", "w"]
    constants = {"w": weight, "b": build.floats(columns)} if kind == "Gemm" else {"w": weight}
    return build.model([node(kind, inputs, ["y"], name="layer")], constants, {"x": ["n", rows]}, {"y": ["n", columns]})


def numbers(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[N, ...] bytes as [N, numbers]; the last ones may be filling."""
    rows = stored.reshape(len(stored), -1)
    return rows if bits == 8 else np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)


# --- the numbers


@BITS
@SYMMETRIC
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("rows", [32, 96, 100, 128])  # 96 and 100: an odd number of blocks, a block that is not full
def test_rtn_is_onnxruntimes_own_bit_by_bit(bits: int, symmetric: bool, block: int, rows: int) -> None:
    weight, columns = heavy(rows, 7, seed=rows), 7
    blocks = -(-rows // block)
    stored = np.zeros((columns, blocks, block * bits // 8), np.uint8)
    scale = np.zeros((columns, blocks), np.float32)
    zero = np.zeros((columns, -(-blocks * bits // 8)), np.uint8)
    padded = np.pad(weight, ((0, blocks * block - rows), (0, 0)))
    quantize = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    quantize(stored, padded, scale, zero, block, columns, rows, symmetric)
    packed = blockwise.packed(blockwise.rtn(weight, bits=bits, block=block, symmetric=symmetric), symmetric=symmetric)
    np.testing.assert_array_equal(packed.scale, scale)
    np.testing.assert_array_equal(numbers(packed.weight, bits)[:, :rows], numbers(stored, bits)[:, :rows])
    if packed.zero is not None:
        np.testing.assert_array_equal(numbers(packed.zero, bits)[:, :blocks], numbers(zero, bits)[:, :blocks])


@BITS
@SYMMETRIC
@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize(("rows", "block"), [(64, 32), (48, 16), (100, 64), (7, 16)])
def test_onnxruntime_multiplies_with_the_numbers_that_we_mean(
    tmp_path: Path, bits: int, symmetric: bool, method: str, rows: int, block: int
) -> None:
    """An odd number of blocks with zero points (48 by 16) crashes onnxruntime's quantizer."""
    weight = heavy(rows, 9)
    options = {"bits": bits, "symmetric": symmetric, "method": method, "block_size": block, "accuracy_level": 0}
    made, _ = build.apply(weights_only.run, linear(weight), tmp_path, options)
    quantize = blockwise.rtn if method == "rtn" else blockwise.hqq
    meant = quantize(weight, bits=bits, block=block, symmetric=symmetric).dequantized()
    x = build.floats(5, rows)
    np.testing.assert_allclose(build.answer(made, {"x": x})["y"], x @ meant, rtol=1e-4, atol=1e-5)


def test_a_block_of_zeros_and_one_of_equal_values() -> None:
    weight = np.concatenate([np.zeros((16, 2)), np.full((16, 2), 0.3)]).astype(np.float32)
    for quantize in (blockwise.rtn, blockwise.hqq):
        for symmetric in (True, False):
            found = quantize(weight, bits=4, block=16, symmetric=symmetric).dequantized()
            np.testing.assert_allclose(found, weight, atol=1e-6)


@BITS
@SYMMETRIC
def test_hqq_makes_no_block_worse_and_most_better(bits: int, symmetric: bool) -> None:
    weight = heavy(256, 40)
    errors = []
    for quantize in (blockwise.rtn, blockwise.hqq):
        found = quantize(weight, bits=bits, block=64, symmetric=symmetric)
        error = blockwise.blocked(weight, 64) - found.grid.values(found.whole.astype(np.float32))
        errors.append(np.sum(error**2, axis=-1))
    assert np.all(errors[1] <= errors[0] * (1 + 1e-6))
    assert np.mean(errors[1] < errors[0]) > 0.8


def hqq_as_published(blocks: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Badri and Shaji, with float zero points: what onnxruntime's torch program computes."""
    most = 2**bits - 1
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    scale = most / (high - low)
    zero, beta, best = np.round(-low * scale), 10.0, np.inf
    for _ in range(20):
        whole = np.clip(np.round(blocks * scale + zero), 0, most)
        error = blocks - (whole - zero) / scale
        shrunk = np.sign(error) * np.maximum(np.abs(error) - (np.abs(error) + 1e-8) ** -0.3 / beta, 0)
        zero = np.mean(whole - (blocks - shrunk) * scale, axis=-1, keepdims=True)
        beta *= 1.01
        if np.abs(error).mean() >= best:
            break
        best = float(np.abs(error).mean())
    found: NDArray[np.float32] = (np.clip(np.round(blocks * scale + zero), 0, most) - zero) / scale
    return found


@pytest.mark.parametrize(("block", "most"), [(32, 1.05), (128, 1.01)])
def test_hqq_with_whole_zero_points_is_as_good_as_with_float_ones(block: int, most: float) -> None:
    weight = heavy(1024, 64)
    blocks = blockwise.blocked(weight, block)
    found = blockwise.hqq(weight, bits=4, block=block, symmetric=False)
    ours = np.linalg.norm(blocks - found.grid.values(found.whole.astype(np.float32)))
    assert ours <= most * np.linalg.norm(blocks - hqq_as_published(blocks, 4))


# --- GPTQ


def digits() -> NDArray[np.float32]:
    """Real inputs: 64 pixels that depend on each other, some of them always zero."""
    return (load_digits().data / 16).astype(np.float32)


def hessian_of(x: NDArray[np.float32]) -> NDArray[np.float64]:
    hessian = gptq.Hessian(x.shape[1])
    hessian.add(x)
    return hessian.value()


@BITS
@SYMMETRIC
@pytest.mark.parametrize("block", [16, 64])
def test_gptq_answers_better_than_rtn_on_real_data(bits: int, symmetric: bool, block: int) -> None:
    x, weight = digits(), heavy(64, 30)
    exact = x @ weight
    rounded = blockwise.rtn(weight, bits=bits, block=block, symmetric=symmetric).dequantized()
    fitted = gptq.gptq(
        weight, hessian_of(x[:900]), bits=bits, block=block, symmetric=symmetric, damping=0.01
    ).dequantized()
    seen, unseen = slice(0, 900), slice(900, None)
    for rows in (seen, unseen):
        assert np.linalg.norm(x[rows] @ fitted - exact[rows]) < 0.8 * np.linalg.norm(x[rows] @ rounded - exact[rows])


@BITS
@SYMMETRIC
@pytest.mark.parametrize("rows", [64, 50])
def test_gptq_on_independent_inputs_is_rtn(bits: int, symmetric: bool, rows: int) -> None:
    """Without correlation no row can make up for another: the update is zero."""
    weight = heavy(rows, 12)
    shape = {"bits": bits, "block": 16, "symmetric": symmetric}
    fitted = gptq.gptq(weight, 3.0 * np.eye(rows), damping=0.01, **shape)
    rounded = blockwise.rtn(weight, **shape)
    np.testing.assert_array_equal(fitted.whole[:, :3], rounded.whole[:, :3])
    np.testing.assert_allclose(fitted.dequantized(), rounded.dequantized(), rtol=1e-6)


def test_gptq_follows_the_published_recursion() -> None:
    """Row by row with an inverse that is recomputed for the rows left: the form of the paper before its speed-ups."""
    x, weight = digits()[:, 20:44] + 0.1 * build.floats(1797, 24), heavy(24, 5)
    hessian = hessian_of(x) + 0.01 * np.mean(np.diag(hessian_of(x))) * np.eye(24)
    left, expected = weight.astype(np.float64).copy(), np.zeros((24, 5))
    grid = None
    for row in range(24):
        if row % 16 == 0:
            values = np.pad(left[row : row + 16], ((0, max(0, row + 16 - 24)), (0, 0))).T.astype(np.float32)
            grid = blockwise.range_grid(values[:, None, :], bits=4, symmetric=True)
        assert grid is not None
        expected[row] = grid.values(grid.rounded(left[row].astype(np.float32)[:, None, None]))[:, 0, 0]
        inverse = np.linalg.inv(hessian[row:, row:])
        left[row:] -= np.outer(inverse[:, 0] / inverse[0, 0], left[row] - expected[row])
    found = gptq.gptq(weight, hessian_of(x), bits=4, block=16, symmetric=True, damping=0.01).dequantized()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def uneven() -> NDArray[np.float32]:
    """Inputs of which a few are many times as large as the others, as those of language models are."""
    source = np.random.default_rng(3)
    size = np.where(np.arange(64) % 16 == 5, 30.0, 1.0) * source.uniform(0.5, 1.5, 64)
    return (source.standard_normal((1200, 64)) * size).astype(np.float32)


@BITS
@SYMMETRIC
def test_awq_answers_better_than_rtn_where_some_inputs_are_large(bits: int, symmetric: bool) -> None:
    x, weight = uneven(), heavy(64, 30)
    shape = {"bits": bits, "block": 32, "symmetric": symmetric}
    rounded = blockwise.rtn(weight, **shape).dequantized()
    fitted = awq.awq(weight, hessian_of(x[:900]), **shape).dequantized()
    for rows in (slice(0, 900), slice(900, None)):
        exact = x[rows] @ weight
        assert np.linalg.norm(x[rows] @ fitted - exact) < 0.8 * np.linalg.norm(x[rows] @ rounded - exact)


@given(seed=st.integers(0, 10_000), columns=st.sampled_from([1, 7, 300]), symmetric=st.booleans())
@settings(max_examples=30)
def test_awq_is_never_worse_than_rtn_on_its_examples(seed: int, columns: int, symmetric: bool) -> None:
    source = np.random.default_rng(seed)
    x = (source.standard_normal((90, 40)) * source.lognormal(0, 2, 40)).astype(np.float32)
    x[:, source.random(40) < 0.1] = 0.0
    weight, hessian = heavy(40, columns, seed), hessian_of(x)

    def loss(quantized: blockwise.Quantized) -> float:
        difference = quantized.dequantized() - weight
        return float(np.sum((hessian @ difference) * difference))

    fitted = awq.awq(weight, hessian, bits=4, block=16, symmetric=symmetric)
    assert loss(fitted) <= loss(blockwise.rtn(weight, bits=4, block=16, symmetric=symmetric))
    assert fitted.divisors is None or (np.isfinite(fitted.divisors).all() and (fitted.divisors > 0).all())


def test_awq_on_equal_inputs_is_rtn() -> None:
    assert awq.awq(heavy(64, 12), 3.0 * np.eye(64), bits=4, block=16, symmetric=True).divisors is None


def test_awq_divides_inside_the_graph_what_it_multiplied(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "a"], ["h"], name="one"), node("MatMul", ["x", "b"], ["y"], name="two")]
    source = build.model(
        nodes, {"a": heavy(64, 9), "b": heavy(64, 5, 1)}, {"x": ["n", 64]}, {"h": ["n", 9], "y": ["n", 5]}
    )
    x = uneven()
    options = {"method": "awq", "accuracy_level": 0}
    made, result = build.apply(weights_only.run, source, tmp_path, options, examples=[{"x": x}])
    assert sorted(build.kinds(made)) == ["MatMulNBits", "MatMulNBits", "Mul", "Mul"]
    found = build.answer(made, {"x": x})
    for name, weight in (("h", heavy(64, 9)), ("y", heavy(64, 5, 1))):
        meant = awq.awq(weight, hessian_of(x), bits=4, block=32, symmetric=True).dequantized()
        np.testing.assert_allclose(found[name], x @ meant, rtol=1e-4, atol=1e-4 * np.abs(x @ meant).max())
    assert result.facts["method"] == "awq"


def test_inputs_that_are_never_seen_keep_their_weights() -> None:
    """The paper's program zeroes them, which is wrong for the first example that has them."""
    x, weight = digits(), heavy(64, 8)
    dead = np.flatnonzero(x.max(axis=0) == 0)
    assert len(dead) == 3
    fitted = gptq.gptq(weight, hessian_of(x), bits=8, block=16, symmetric=True, damping=0.01).dequantized()
    np.testing.assert_allclose(fitted[dead], weight[dead], atol=0.01)


def test_sums_do_not_depend_on_how_examples_are_divided() -> None:
    x = digits()
    whole, parts = gptq.Hessian(64), gptq.Hessian(64)
    whole.add(x)
    for part in np.array_split(x, 7):
        parts.add(part.reshape(-1, 1, 64))
    np.testing.assert_allclose(parts.value(), whole.value(), rtol=1e-5)
    assert parts.rows == whole.rows == 1797


def test_gptq_takes_its_inputs_from_inside_the_graph_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = graphs.encoder()
    ids = np.random.default_rng(0).integers(0, 50, (3, 4, 6))
    examples = [{"ids": each, "mask": np.ones_like(each)} for each in ids]
    at_once, result = build.apply(weights_only.run, source, tmp_path, {"method": "gptq"}, examples=examples)
    monkeypatch.setattr(weights_only, "_HESSIAN_BYTES", 1)
    in_turns, _ = build.apply(weights_only.run, source, tmp_path, {"method": "gptq"}, examples=examples)
    assert at_once.SerializeToString() == in_turns.SerializeToString()
    assert len(result.facts["quantized"]) == 14
    rounded, _ = build.apply(weights_only.run, source, tmp_path)
    exact = build.answer(source, examples[0])["logits"]
    errors = [np.abs(build.answer(made, examples[0])["logits"] - exact).max() for made in (at_once, rounded)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_method_that_fits_to_examples_without_usable_ones(tmp_path: Path, method: str) -> None:
    with pytest.raises(CalibrationError, match=f"{method} fits weights to examples, and there are none.*or use hqq"):
        build.apply(weights_only.run, linear(heavy(32, 4)), tmp_path, {"method": method})
    with pytest.raises(CalibrationError, match=f"{method} was given no examples") as caught:
        build.apply(weights_only.run, linear(heavy(32, 4)), tmp_path, {"method": method}, examples=[])
    assert caught.value.needed == 1
    bad = [{"x": np.full((4, 32), np.nan, np.float32)}]
    with pytest.raises(CalibrationError, match=f"{method} cannot fit 'layer'.*not finite"):
        build.apply(weights_only.run, linear(heavy(32, 4)), tmp_path, {"method": method}, examples=bad)


# --- graphs


def test_gemm_is_not_passed_over(tmp_path: Path) -> None:
    source = linear(heavy(64, 8), "Gemm")
    made, result = build.apply(weights_only.run, source, tmp_path, {"bits": 8})
    assert build.kinds(made) == ["MatMulNBits", "Add"]
    assert result.facts["quantized"] == ["layer"]
    x = {"x": build.floats(5, 64)}
    np.testing.assert_allclose(build.answer(made, x)["y"], build.answer(source, x)["y"], atol=0.03)


def test_a_graph_without_matrices_is_an_error(tmp_path: Path) -> None:
    source = build.model([node("Relu", ["x"], ["y"])], {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(CompileError, match="no bytes were quantized: the graph has no MatMul or Gemm"):
        build.apply(weights_only.run, source, tmp_path)


def test_eight_bit_arithmetic_is_asked_for_on_a_cpu_and_only_there(tmp_path: Path) -> None:
    for target, expected in (("x86-64-vnni", 4), ("arm64", 4), ("cuda", None)):
        made, result = build.apply(weights_only.run, linear(heavy(32, 4)), tmp_path, target=target)
        attributes = {a.name: helper.get_attribute_value(a) for a in made.graph.node[0].attribute}
        assert attributes.get("accuracy_level") == expected
        assert ("integer_nodes" in result.facts) == (target == "x86-64-vnni")  # elsewhere it was not seen


def test_zero_points_are_whole_numbers(tmp_path: Path) -> None:
    """Float ones, which onnxruntime's HQQ writes, run many times slower on a CPU."""
    made, _ = build.apply(weights_only.run, linear(heavy(64, 4)), tmp_path, {"method": "hqq"})
    (zero,) = (value for name, value in build.constants(made).items() if name.endswith("zero_points"))
    assert zero.dtype == np.uint8


def test_a_matrix_used_twice_is_stored_once(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    source = build.model(nodes, {"w": heavy(32, 32)}, {"x": ["n", 32]}, {"y": ["n", 32]})
    made, result = build.apply(weights_only.run, source, tmp_path)
    assert len(made.graph.initializer) == 2
    assert len(result.facts["quantized"]) == 2
    assert result.facts["quantized_from_bytes"] == 4 * 32 * 32


def test_fitted_to_different_inputs_it_has_two_forms(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    source = build.model(nodes, {"w": heavy(32, 32)}, {"x": ["n", 32]}, {"y": ["n", 32]})
    examples = [{"x": build.floats(64, 32)}]
    made, _ = build.apply(weights_only.run, source, tmp_path, {"method": "gptq"}, examples=examples)
    assert len(made.graph.initializer) == 4


def test_what_the_gate_sends_back_stays_float(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "a"], ["h"], name="one"), node("MatMul", ["h", "b"], ["y"], name="two")]
    source = build.model(nodes, {"a": heavy(32, 32), "b": heavy(32, 8)}, {"x": ["n", 32]}, {"y": ["n", 8]})
    made, result = build.apply(weights_only.run, source, tmp_path, keep_float=frozenset({"two"}))
    assert build.kinds(made) == ["MatMulNBits", "MatMul"]
    assert result.facts["left_float"] == {"two": "sent back to float"}
    with pytest.raises(CompileError, match="no node named 'three'"):
        build.apply(weights_only.run, source, tmp_path, keep_float=frozenset({"three"}))
    with pytest.raises(CompileError, match=r"no bytes were quantized.*\(one: sent back to float; two: sent back"):
        build.apply(weights_only.run, source, tmp_path, keep_float=frozenset({"one", "two"}))


def test_what_cannot_be_quantized_is_named_with_the_reason(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="good"),
        node("MatMul", ["h", "stack"], ["s"], name="stacked"),
        node("MatMul", ["v", "w"], ["q"], name="vector"),
        node("Add", ["s", "q"], ["y"]),
    ]
    constants = {"w": heavy(16, 16), "stack": build.floats(3, 16, 16)}
    source = build.model(nodes, constants, {"x": ["n", 16], "v": [16]}, {"y": [3, "n", 16]})
    _, result = build.apply(weights_only.run, source, tmp_path, {"block_size": 16})
    assert result.facts["left_float"] == {
        "stacked": "its weight has shape [3, 16, 16], not two dimensions",
        "vector": "its input is a vector",
    }
    assert "2 products left in float" in result.summary


def test_weights_that_are_not_finite_are_left_and_named(tmp_path: Path) -> None:
    weight = heavy(32, 4)
    weight[3, 1] = np.inf
    with pytest.raises(CompileError, match="layer: its weight holds NaN or infinity"):
        build.apply(weights_only.run, linear(weight), tmp_path)


def test_bytes_shrink_as_reported(tmp_path: Path) -> None:
    made, result = build.apply(weights_only.run, linear(heavy(128, 64)), tmp_path)
    packed = sum(value.nbytes for value in build.constants(made).values())
    assert result.facts["integer_weight_bytes"] == packed == 128 * 64 // 2 + 4 * 4 * 64
    assert result.facts["float_weight_bytes"] == 0
    assert 15 < result.facts["weight_sqnr_db"]["layer"] < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 2}, "option 'bits': Invalid enum value 2"),
        ({"method": "nearest"}, "option 'method': Invalid enum value 'nearest'"),
        ({"block_size": 48}, "option 'block_size'"),
        ({"damping": 0}, "option 'damping'"),
        ({"blocksize": 32}, "did you mean 'block_size'"),
    ],
)
def test_options_that_do_not_exist(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build.apply(weights_only.run, linear(heavy(32, 4)), tmp_path, options)


def test_a_half_precision_matrix_is_left(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], name="half")]
    source = build.model(nodes, {"w": heavy(32, 4).astype(np.float16)}, {"x": ["n", 32]}, {"y": ["n", 4]})
    for value in (*source.graph.input, *source.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(CompileError, match="half: its weight is FLOAT16, not float32"):
        build.apply(weights_only.run, source, tmp_path)
