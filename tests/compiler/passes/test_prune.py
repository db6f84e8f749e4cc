"""Pruning: which weights and channels go, what must go with them, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.passes import prune
from penstock.errors import CompileError, ConfigError
from tests.compiler.passes import build, graphs

node = helper.make_node
CHANNELS = {"method": "channels", "share": 0.5}


def mlp() -> onnx.ModelProto:
    nodes = [
        node("Gemm", ["x", "w0", "b0"], ["h"], name="first", transB=1),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w1", "b1"], ["y"], name="second"),
    ]
    constants = {
        "w0": build.floats(8, 6),
        "b0": build.floats(8, seed=1),
        "w1": build.floats(8, 3, seed=2),
        "b1": build.floats(3, seed=3),
    }
    return build.model(nodes, constants, {"x": ["n", 6]}, {"y": ["n", 3]})


def convolutions(
    middle: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], *, end: str = "e", features: int = 8
) -> onnx.ModelProto:
    """x [n, 3, 6, 6] -> conv "a" with 8 channels -> ``middle`` from "s" to ``end`` -> pooled -> Gemm -> y [n, 4]."""
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["s"], name="a", pads=[1, 1, 1, 1]),
        *middle,
        node("GlobalAveragePool", [end], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "dense"], ["y"], name="dense"),
    ]
    fixed = {
        "wa": build.floats(8, 3, 3, 3, seed=11),
        "ba": build.floats(8, seed=12),
        "dense": build.floats(features, 4, seed=13),
    }
    return build.model(nodes, fixed | constants, {"x": ["n", 3, 6, 6]}, {"y": ["n", 4]})


def shapes(made: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in build.constants(made).items()}


def agrees_with_reference(made: onnx.ModelProto, *size: int) -> None:
    """The pruned file is a model of its own: another evaluator reads it the same."""
    feeds = {made.graph.input[0].name: build.floats(2, *size, seed=5)}
    (expected,) = ReferenceEvaluator(made).run(None, feeds)
    (found,) = build.answer(made, feeds).values()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


# --- single weights


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_each_matrix_loses_its_smallest_weights(tmp_path: Path, share: float) -> None:
    source = mlp()
    made, result = build.apply(prune.run, source, tmp_path, {"share": share})
    for name in ("w0", "w1"):
        before, after = build.constants(source)[name], build.constants(made)[name]
        count = int(share * before.size)
        assert np.sum(after == 0) == count
        np.testing.assert_array_equal(after[after != 0], before[after != 0])
        if count:
            assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()
    for name in ("b0", "b1"):
        np.testing.assert_array_equal(build.constants(made)[name], build.constants(source)[name])
    assert result.facts["zero_share"] == pytest.approx(share, abs=0.05)


def test_the_smallest_of_all_go_wherever_they_are(tmp_path: Path) -> None:
    source = mlp()
    big = build.constants(source)["w1"] * 100
    source.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(big, "w1"))
    made, result = build.apply(prune.run, source, tmp_path, {"share": 0.5, "scope": "global"})
    assert result.facts["zero_share_by_tensor"] == {"w0": 36 / 48, "w1": 0}
    assert result.facts["zero_share"] == 0.5
    assert (build.constants(made)["w1"] != 0).all()


def test_of_equal_weights_the_first_go(tmp_path: Path) -> None:
    source = build.model(
        [node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 2), np.float32)}, {"x": ["n", 4]}, {"y": ["n", 2]}
    )
    made, _ = build.apply(prune.run, source, tmp_path, {"share": 0.4})
    np.testing.assert_array_equal(build.constants(made)["w"].reshape(-1), [0, 0, 0, 1, 1, 1, 1, 1])


def test_zeros_compress(tmp_path: Path) -> None:
    _, result = build.apply(prune.run, graphs.encoder(), tmp_path, {"share": 0.8})
    assert result.facts["gzip_bytes_after"] < 0.6 * result.facts["gzip_bytes_before"]


def test_what_the_gate_sends_back_is_left_alone(tmp_path: Path) -> None:
    source = mlp()
    made, _ = build.apply(prune.run, source, tmp_path, {"share": 0.5}, keep_float=frozenset({"first"}))
    np.testing.assert_array_equal(build.constants(made)["w0"], build.constants(source)["w0"])
    assert (build.constants(made)["w1"] == 0).any()
    made, _ = build.apply(prune.run, convolutions([], {}, end="s"), tmp_path, {"share": 0.0, "method": "channels"})
    with pytest.raises(CompileError, match="no channel can be taken out.*sent back"):
        build.apply(prune.run, source, tmp_path, CHANNELS, keep_float=frozenset({"first"}))


# --- channels


def test_the_channels_with_the_least_norm_go_and_with_them_what_reads_them(tmp_path: Path) -> None:
    source = mlp()
    made, result = build.apply(prune.run, source, tmp_path, CHANNELS)
    old, new = build.constants(source), build.constants(made)
    kept = np.sort(np.argsort(np.linalg.norm(old["w0"], axis=1))[4:])
    np.testing.assert_array_equal(new["w0"], old["w0"][kept])
    np.testing.assert_array_equal(new["b0"], old["b0"][kept])
    np.testing.assert_array_equal(new["w1"], old["w1"][kept])
    assert result.facts["layers"] == {"first": [8, 4], "second": [3, 3]}
    assert result.facts["cannot_be_pruned"] == {"second": "they are output 'y'"}
    assert (result.facts["parameters_before"], result.facts["parameters_after"]) == (
        8 * 6 + 8 + 24 + 3,
        4 * 6 + 4 + 12 + 3,
    )
    x = build.floats(5, 6, seed=9)
    expected = np.maximum(x @ old["w0"][kept].T + old["b0"][kept], 0) @ old["w1"][kept] + old["b1"]
    np.testing.assert_allclose(build.answer(made, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_normalization_follows(tmp_path: Path) -> None:
    constants = {name: np.abs(build.floats(8, seed=index)) for index, name in enumerate(["g", "o", "m", "v"])}
    middle = [node("BatchNormalization", ["s", "g", "o", "m", "v"], ["n0"]), node("Relu", ["n0"], ["e"])]
    made, _ = build.apply(prune.run, convolutions(middle, constants), tmp_path, CHANNELS)
    assert {shapes(made)[name] for name in "gomv"} == {(4,)}
    agrees_with_reference(made, 3, 6, 6)


def test_a_residual_addition_ties_both_sides(tmp_path: Path) -> None:
    middle = [
        node("Conv", ["s", "wb"], ["t"], name="b", pads=[1, 1, 1, 1]),
        node("Add", ["s", "t"], ["e"]),
    ]
    source = convolutions(middle, {"wb": build.floats(8, 8, 3, 3, seed=1)})
    made, result = build.apply(prune.run, source, tmp_path, CHANNELS)
    assert (shapes(made)["wa"], shapes(made)["wb"]) == ((4, 3, 3, 3), (4, 4, 3, 3))
    norms = sum(np.sum(build.constants(source)[name] ** 2, axis=(1, 2, 3)) for name in ("wa", "wb"))
    kept = np.sort(np.argsort(norms)[4:])
    np.testing.assert_array_equal(build.constants(made)["wa"], build.constants(source)["wa"][kept])
    assert result.facts["layers"]["a"] == result.facts["layers"]["b"] == [8, 4]


def test_concatenated_channels_keep_their_places(tmp_path: Path) -> None:
    middle = [
        node("Conv", ["x", "wb"], ["t"], name="b", pads=[1, 1, 1, 1]),
        node("Concat", ["s", "t"], ["e"], axis=1),
    ]
    source = convolutions(middle, {"wb": build.floats(4, 3, 3, 3, seed=1)}, features=12)
    made, result = build.apply(prune.run, source, tmp_path, CHANNELS)
    assert result.facts["layers"] == {"a": [8, 4], "b": [4, 2], "dense": [4, 4]}
    old = build.constants(source)
    kept = [
        np.sort(np.argsort(np.linalg.norm(old[n].reshape(len(old[n]), -1), axis=1))[len(old[n]) // 2 :])
        for n in ("wa", "wb")
    ]
    np.testing.assert_array_equal(build.constants(made)["dense"], old["dense"][np.concatenate([kept[0], 8 + kept[1]])])


def test_a_depthwise_convolution_passes_channels_on(tmp_path: Path) -> None:
    middle = [node("Conv", ["s", "wd", "bd"], ["e"], name="d", group=8, pads=[1, 1, 1, 1])]
    source = convolutions(middle, {"wd": build.floats(8, 1, 3, 3), "bd": build.floats(8)})
    made, _ = build.apply(prune.run, source, tmp_path, CHANNELS)
    assert (shapes(made)["wd"], shapes(made)["bd"]) == ((4, 1, 3, 3), (4,))
    depthwise = next(n for n in made.graph.node if n.name == "d")
    assert {a.name: a.i for a in depthwise.attribute}["group"] == 4
    agrees_with_reference(made, 3, 6, 6)


@pytest.mark.parametrize("target", [[1, 288], [0, -1], [-1, 288], [0, 288]])
def test_flattened_channels_take_all_their_places_along(tmp_path: Path, target: list[int]) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["s"], name="a", pads=[1, 1, 1, 1]),
        node("Reshape", ["s", "target"], ["f"], name="reshape"),
        node("Gemm", ["f", "dense"], ["y"], name="dense", transB=1),
    ]
    constants = {"w": build.floats(8, 3, 3, 3), "target": np.array(target), "dense": build.floats(4, 288, seed=1)}
    rows = 1 if target[0] == 1 else "n"
    source = build.model(nodes, constants, {"x": [rows, 3, 6, 6]}, {"y": [rows, 4]})
    made, _ = build.apply(prune.run, source, tmp_path, CHANNELS)
    old, new = build.constants(source), build.constants(made)
    kept = np.sort(np.argsort(np.linalg.norm(old["w"].reshape(8, -1), axis=1))[4:])
    expected = old["dense"].reshape(4, 8, 36)[:, kept].reshape(4, -1)
    np.testing.assert_array_equal(new["dense"], expected)
    x = build.floats(1, 3, 6, 6, seed=4)
    assert build.answer(made, {"x": x})["y"].shape == (1, 4)


def test_gates_of_squeeze_and_excitation_stay_with_their_channels(tmp_path: Path) -> None:
    middle = [
        node("ReduceMean", ["s"], ["m"], axes=[2, 3]),
        node("Conv", ["m", "w1"], ["q"], name="squeeze"),
        node("Conv", ["q", "w2"], ["u"], name="excite"),
        node("Sigmoid", ["u"], ["gate"]),
        node("Mul", ["s", "gate"], ["e"]),
    ]
    constants = {"w1": build.floats(4, 8, 1, 1), "w2": build.floats(8, 4, 1, 1, seed=1)}
    made, result = build.apply(prune.run, convolutions(middle, constants), tmp_path, CHANNELS)
    assert result.facts["layers"] == {"a": [8, 4], "squeeze": [4, 2], "excite": [8, 4], "dense": [4, 4]}
    agrees_with_reference(made, 3, 6, 6)


def test_layers_in_a_transformer_lose_what_can_be_followed(tmp_path: Path) -> None:
    _, result = build.apply(prune.run, graphs.encoder(layers=1), tmp_path, CHANNELS)
    layers = result.facts["layers"]
    assert [had for had, kept in layers.values() if kept < had] == [128, 32]  # the feed-forward, and the pooler
    assert any("Shape 'Shape" in reason for reason in result.facts["cannot_be_pruned"].values())


@pytest.mark.parametrize(
    ("middle", "constants", "names"),
    [
        ([node("LRN", ["s"], ["e"], size=3, name="lrn")], {}, "LRN 'lrn'"),
        ([node("Softmax", ["s"], ["e"], axis=1, name="softmax")], {}, "Softmax 'softmax'"),
        (
            [node("Conv", ["s", "w2"], ["e"], group=2, name="grouped")],
            {"w2": build.floats(8, 4, 1, 1)},
            "Conv 'grouped'",
        ),
        ([node("DepthToSpace", ["s"], ["e"], blocksize=2, name="shuffle")], {}, "DepthToSpace 'shuffle'"),
    ],
)
def test_what_mixes_channels_is_named_and_left_alone(
    tmp_path: Path, middle: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], names: str
) -> None:
    features = 2 if "shuffle" in names else 8
    source = convolutions(middle, constants, features=features)
    if names == "Conv 'grouped'":
        _, result = build.apply(prune.run, source, tmp_path, CHANNELS | {"share": 0.0})
        assert f"{names} cannot be followed" in result.facts["cannot_be_pruned"]["a"]
        return
    with pytest.raises(CompileError, match=f"no channel can be taken out: .*{names} cannot be followed"):
        build.apply(prune.run, source, tmp_path, CHANNELS)


def test_a_layer_keeps_at_least_one_channel(tmp_path: Path) -> None:
    made, _ = build.apply(prune.run, mlp(), tmp_path, CHANNELS | {"share": 0.99})
    assert shapes(made)["w0"] == (1, 6)
    agrees_with_reference(made, 6)


def test_a_constant_that_two_layers_share_is_divided_first(tmp_path: Path) -> None:
    """The second reads 8 channels of the first, which are pruned; the first reads an input, which is not."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w"], ["z"], name="second"),
        node("Relu", ["z"], ["q"]),
        node("MatMul", ["q", "v"], ["y"], name="third"),
    ]
    constants = {"w": build.floats(8, 8), "v": build.floats(8, 2, seed=1)}
    source = build.model(nodes, constants, {"x": ["n", 8]}, {"y": ["n", 2]})
    made, result = build.apply(prune.run, source, tmp_path, CHANNELS)
    assert result.facts["layers"] == {"first": [8, 4], "second": [8, 4], "third": [2, 2]}
    assert sorted(shapes(made).values()) == [(4, 2), (4, 4), (8, 4)]
    agrees_with_reference(made, 8)


def test_nothing_taken_out_is_the_same_model(tmp_path: Path) -> None:
    source = graphs.encoder()
    made, _ = build.apply(prune.run, source, tmp_path, CHANNELS | {"share": 0.0})
    feeds = {"ids": np.arange(14).reshape(2, 7), "mask": np.ones((2, 7), np.int64)}
    np.testing.assert_array_equal(build.answer(made, feeds)["logits"], build.answer(source, feeds)["logits"])


def test_no_layers_to_prune(tmp_path: Path) -> None:
    source = build.model([node("Relu", ["x"], ["y"])], {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(CompileError, match="the graph has no Conv, ConvTranspose, Gemm, MatMul"):
        build.apply(prune.run, source, tmp_path, {"share": 0.5})
    with pytest.raises(CompileError, match="no layer with a constant weight has channels to spare"):
        build.apply(prune.run, source, tmp_path, CHANNELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required field `share`"),
        ({"share": 1.0}, "option 'share'"),
        ({"share": -0.1}, "option 'share'"),
        ({"share": 0.5, "method": "random"}, "option 'method'"),
    ],
)
def test_options_that_do_not_exist(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build.apply(prune.run, mlp(), tmp_path, options)


def test_a_global_share_of_channels_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='scope = "global" is for single weights'):
        build.apply(prune.run, mlp(), tmp_path, CHANNELS | {"scope": "global"})
