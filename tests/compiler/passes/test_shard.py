"""Pipeline stages on disk: the chain answers as the whole, and its document says what flows where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from compiler.graph import files
from compiler.passes import optimize, shard
from compiler.passes.shard import Chain
from penstock.errors import CompileError, ConfigError
from tests.compiler.passes import build, cases, graphs

node = helper.make_node


def cut(source: onnx.ModelProto, directory: Path, **options: Any) -> tuple[Chain, Path]:
    build.apply(shard.run, source, directory, options)
    (document,) = directory.glob("out-*/stages.json")
    return msgspec.json.decode(document.read_bytes(), type=Chain), document


def encoder_feeds(rows: int = 3, length: int = 7) -> dict[str, Any]:
    ids = np.random.default_rng(1).integers(0, 50, (rows, length))
    return {"ids": ids, "mask": (np.arange(length) < [[length], [3], [5]][:rows]).astype(np.int64)}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_encoder_in_stages_answers_bit_by_bit_as_the_whole(tmp_path: Path, count: int) -> None:
    source = graphs.encoder()
    chain, document = cut(source, tmp_path, stages=count)
    assert len(chain.stages) == count
    feeds = encoder_feeds()
    whole = build.answer(source, feeds)["logits"]
    np.testing.assert_array_equal(cases.answers(document, feeds)["logits"], whole)
    np.testing.assert_allclose(ReferenceEvaluator(source).run(None, feeds)[0], whole, atol=1e-5)


def test_free_dimensions_stay_free_in_every_stage(tmp_path: Path) -> None:
    _, document = cut(graphs.encoder(), tmp_path, stages=3)
    for rows, length in ((1, 2), (3, 9)):
        assert cases.answers(document, encoder_feeds(rows, length))["logits"].shape == (rows, 3)


def test_the_document_says_where_everything_comes_from(tmp_path: Path) -> None:
    chain, document = cut(graphs.encoder(), tmp_path, stages=3)
    assert (chain.inputs, chain.outputs) == (("ids", "mask"), ("logits",))
    available: dict[str, int] = dict.fromkeys(chain.inputs, -1)
    for index, stage in enumerate(chain.stages):
        part = files.read(document.with_name(stage.file), field="stage")
        assert [port.name for port in stage.inputs] == [value.name for value in part.graph.input]
        assert {port.name: port.source for port in stage.inputs}.items() <= available.items()
        assert list(stage.outputs) == [value.name for value in part.graph.output]
        assert stage.weight_bytes == sum(len(tensor.raw_data) for tensor in part.graph.initializer)
        assert stage.memory_bytes >= stage.weight_bytes
        assert stage.device == index
        available |= dict.fromkeys(stage.outputs, index)
    assert "logits" in available
    assert len(chain.crossing_bytes) == 2


def test_constants_that_two_stages_need_are_in_both(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w"], ["y"])]
    source = build.model(nodes, {"w": build.floats(8, 8)}, {"x": ["n", 8]}, {"y": ["n", 8]})
    chain, document = cut(source, tmp_path, stages=2)
    assert [stage.weight_bytes for stage in chain.stages] == [256, 256]
    feeds = {"x": build.floats(2, 8)}
    np.testing.assert_array_equal(cases.answers(document, feeds)["y"], build.answer(source, feeds)["y"])


def test_what_a_subgraph_captures_crosses_too(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        body = [node("Mul", [name, "w"], ["out"])]
        return helper.make_graph(body, name, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])

    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Neg", ["x"], ["b"]),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["i"], then_branch=branch("a"), else_branch=branch("b")),
        node("Tanh", ["i"], ["y"]),
    ]
    constants = {"w": build.floats(4), "zero": np.array(0, np.float32)}
    source = build.model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 4]})
    for count in (2, 4):
        directory = tmp_path / str(count)
        directory.mkdir()
        _, document = cut(source, directory, stages=count)
        for sign in (1, -1):
            feeds = {"x": sign * np.ones((2, 4), np.float32)}
            np.testing.assert_array_equal(cases.answers(document, feeds)["y"], build.answer(source, feeds)["y"])


def test_an_early_output_and_an_input_that_is_needed_late(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["early"]),
        node("Exp", ["early"], ["b"]),
        node("Neg", ["b"], ["c"]),
        node("Add", ["c", "x"], ["late"]),
    ]
    source = build.model(nodes, {}, {"x": ["n", 4]}, {"early": ["n", 4], "late": ["n", 4]})
    chain, document = cut(source, tmp_path, stages=3)
    assert chain.outputs == ("early", "late")
    feeds = {"x": build.floats(2, 4)}
    found = cases.answers(document, feeds)
    for name, value in build.answer(source, feeds).items():
        np.testing.assert_array_equal(found[name], value)


def test_a_cut_through_what_onnxruntime_fuses_is_made_elsewhere(tmp_path: Path) -> None:
    """Gelu spelt out is fused, and moves the last bits; here the least crosses right in its middle."""
    made, _ = build.apply(optimize.run, graphs.encoder(), tmp_path)
    for index, count in enumerate((2, 4, 6)):
        directory = tmp_path / f"d{index}"
        directory.mkdir()
        _, result = build.apply(shard.run, made, directory, {"stages": count})
        assert "bit-equal to the whole" in result.summary
        assert result.facts["largest_difference_with_layouts"] < 1e-5


def test_a_chain_that_differs_everywhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_is_equal", lambda expected, found: False)
    with pytest.raises(CompileError, match="shard: .*places at which it can be cut|none answers exactly"):
        build.apply(shard.run, graphs.encoder(layers=1), tmp_path, {"stages": 2})


def test_too_little_memory_says_how_much_is_needed(tmp_path: Path) -> None:
    with pytest.raises(
        CompileError, match=r"no division into 2 stages fits 0.01, 0.01 MiB; the most even one needs 0\.\d+"
    ):
        build.apply(shard.run, graphs.encoder(), tmp_path, {"stages": 2, "memory_mib": [0.01]})


def test_memory_for_another_number_of_devices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_mib has 2 numbers for 3 stages"):
        build.apply(shard.run, graphs.encoder(), tmp_path, {"stages": 3, "memory_mib": [1.0, 2.0]})


def test_more_stages_than_operators(tmp_path: Path) -> None:
    source = build.model([node("Relu", ["x"], ["y"])], {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(CompileError, match="2 stages of a graph with 1 operators"):
        build.apply(shard.run, source, tmp_path, {"stages": 2})


def test_an_output_that_nothing_makes(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])]
    source = build.model(nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4], "x": ["n", 4]})
    with pytest.raises(CompileError, match="output 'x' is an input or a constant"):
        build.apply(shard.run, source, tmp_path)


@pytest.mark.parametrize("options", [{"stages": 1}, {"stages": 65}, {"memory_mib": [0]}, {"devices": 2}])
def test_options_that_do_not_exist(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pass shard"):
        build.apply(shard.run, graphs.encoder(), tmp_path, options)
