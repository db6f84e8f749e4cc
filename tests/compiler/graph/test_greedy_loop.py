"""An encoder and a decoder in one graph, against the same search written out in numpy; no exporter is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.graph import files, greedy_loop, row_independence
from compiler.graph.greedy_loop import PROBABILITIES, TOKENS, Ban, Greedy
from compiler.passes import int8_dynamic, int8_static
from compiler.passes.job import PassJob
from compiler.recipe import targets
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine

TOKEN_COUNT, SIZE = 12, 8
START, END, PAD = 1, 2, 0
PLAIN = Greedy(prompt=(START,), max_new_tokens=7, ends=(END,), pad=PAD)
Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of a model that is an encoder-decoder in form: its logits depend on all tokens before and on the input's."""

    source: NDArray[np.float32]
    target: NDArray[np.float32]
    key: NDArray[np.float32]
    head: NDArray[np.float32]


@pytest.fixture(scope="module")
def weights() -> Weights:
    draw = np.random.default_rng(3)
    shapes = {
        "source": (TOKEN_COUNT, SIZE),
        "target": (TOKEN_COUNT, SIZE),
        "key": (SIZE, SIZE),
        "head": (SIZE, TOKEN_COUNT),
    }
    return Weights(**{name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
    constants: dict[str, NDArray[np.generic]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, *given) for name, given in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def parts(weights: Weights) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    """The three graphs as Optimum names their inputs and outputs."""
    node, ids, mask = helper.make_node, (TensorProto.INT64, ["n", "t"]), (TensorProto.INT64, ["n", "s"])
    states = (TensorProto.FLOAT, ["n", "s", SIZE])
    encoder = model(
        [node("Gather", ["w", "input_ids"], ["last_hidden_state"], name="table")],
        {"input_ids": mask, "attention_mask": mask},
        {"last_hidden_state": ["n", "s", SIZE]},
        {"w": weights.source},
    )
    first = model(
        [
            node("MatMul", ["encoder_hidden_states", "k"], ["keys"], name="keys"),
            node("Unsqueeze", ["keys", "one"], ["present.0.encoder.key"], name="heads"),
            node("Gather", ["t", "input_ids"], ["logits"], name="table"),
        ],
        {"encoder_attention_mask": mask, "input_ids": ids, "encoder_hidden_states": states},
        {"logits": ["n", "t", SIZE], "present.0.encoder.key": ["n", 1, "s", SIZE]},
        {"k": weights.key, "t": weights.target, "one": np.array([1])},
    )
    following = model(
        [
            node("Gather", ["t", "input_ids"], ["embedded"], name="table"),
            node("Unsqueeze", ["embedded", "one"], ["own"], name="own"),
            node("Concat", ["past_key_values.0.decoder.key", "own"], ["present.0.decoder.key"], name="cache", axis=2),
            node("ReduceSum", ["present.0.decoder.key", "two"], ["before"], name="before", keepdims=0),
            node("Cast", ["encoder_attention_mask"], ["mask"], name="mask", to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "around"], ["weights"], name="weights"),
            node("Mul", ["past_key_values.0.encoder.key", "weights"], ["kept"], name="kept"),
            node("ReduceSum", ["kept", "two"], ["heard"], name="heard", keepdims=0),
            node("Add", ["before", "heard"], ["both"], name="both"),
            node("Sin", ["both"], ["state"], name="state"),  # bounded, so that no sum decides everything
            node("MatMul", ["state", "h"], ["logits"], name="head"),
        ],
        {
            "encoder_attention_mask": mask,
            "input_ids": (TensorProto.INT64, ["n", 1]),
            "past_key_values.0.decoder.key": (TensorProto.FLOAT, ["n", 1, "p", SIZE]),
            "past_key_values.0.encoder.key": (TensorProto.FLOAT, ["n", 1, "s", SIZE]),
        },
        {"logits": ["n", 1, TOKEN_COUNT], "present.0.decoder.key": ["n", 1, "p + 1", SIZE]},
        {
            "t": weights.target,
            "h": weights.head,
            "one": np.array([1]),
            "two": np.array([2]),
            "around": np.array([1, 3]),
        },
    )
    return encoder, first, following


def expected(weights: Weights, ids: Ids, greedy: Greedy) -> tuple[list[int], list[float]]:
    """Search for one row, without padding."""
    heard = (weights.source[ids] @ weights.key).sum(axis=0)
    before, tokens, sure = list(greedy.prompt), [], []
    for step in range(greedy.max_new_tokens):
        logits = np.sin(weights.target[before].sum(axis=0) + heard) @ weights.head
        for ban in greedy.bans:
            if ban.first <= step < ban.end:
                logits[list(ban.tokens)] = -np.inf
        chances = np.exp(logits - logits.max())
        token = greedy.forced.get(step, int(logits.argmax()))
        tokens.append(token)
        sure.append(1.0 if step in greedy.forced else float((chances / chances.sum()).max()))
        before.append(token)
        if token in greedy.ends:
            break
    return tokens, sure


def rows(count: int, longest: int, *, seed: int = 0) -> tuple[Ids, Ids]:
    """Inputs of different lengths in one batch."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, count)
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return draw.integers(0, TOKEN_COUNT, (count, longest)), mask


def run(made: onnx.ModelProto, ids: Ids, mask: Ids) -> tuple[Ids, Floats]:
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens, sure = session.run([TOKENS, PROBABILITIES], {"input_ids": ids, "attention_mask": mask})
    return tokens, sure


def check(weights: Weights, greedy: Greedy) -> Ids:
    made = greedy_loop.joined(*parts(weights), greedy)
    onnx.checker.check_model(made, full_check=True)
    found = []
    for count, longest in ((1, 1), (9, 6), (40, 9)):
        ids, mask = rows(count, longest, seed=longest)
        tokens, sure = run(made, ids, mask)
        assert tokens.shape == sure.shape == (count, greedy.max_new_tokens)
        for row in range(count):
            wanted, chances = expected(weights, ids[row][mask[row] == 1], greedy)
            fill = greedy.max_new_tokens - len(wanted)
            assert tokens[row].tolist() == wanted + [greedy.pad] * fill
            np.testing.assert_allclose(sure[row], chances + [0.0] * fill, atol=1e-5)
        found.append(tokens)
    return np.concatenate(found)


@pytest.mark.parametrize(
    "greedy",
    [
        PLAIN,
        replace(PLAIN, ends=(-1,)),
        replace(PLAIN, ends=(END, 5)),
        replace(PLAIN, max_new_tokens=1),
        replace(PLAIN, prompt=(START, 4, 7, END)),
        replace(PLAIN, forced={0: 9, 6: END}),
        replace(PLAIN, bans=(Ban(tokens=(3, 8), first=0, end=7), Ban(tokens=(END,), first=0, end=3))),
        replace(PLAIN, prompt=(END, 3), ends=(END,), pad=END, bans=(Ban(tokens=(7, 11), first=0, end=1),)),
    ],
    ids=["plain", "no-end", "two-ends", "one-token", "prompt", "forced", "banned", "pad-is-end-is-start"],
)
def test_every_row_gets_what_the_search_written_out_gives(weights: Weights, greedy: Greedy) -> None:
    check(weights, greedy)


def test_the_model_of_these_tests_says_different_things_and_ends_at_different_places(weights: Weights) -> None:
    tokens = check(weights, PLAIN)
    ends = {row.index(END) if END in row else -1 for row in tokens.tolist()}
    assert len(np.unique(tokens)) > 6
    assert len(ends) > 2


def test_the_loop_stops_when_the_last_row_has_ended(weights: Weights) -> None:
    made = greedy_loop.joined(*parts(weights), replace(PLAIN, forced={1: END}))
    (loop,) = (node for node in made.graph.node if node.op_type == "Loop")
    made.graph.output.append(helper.make_tensor_value_info(loop.output[-1], TensorProto.FLOAT, ["steps", "n", 1]))
    ids, mask = rows(3, 4)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens, collected = session.run([TOKENS, loop.output[-1]], {"input_ids": ids, "attention_mask": mask})
    assert len(collected) == 2, "of seven steps, two are enough"
    assert tokens.shape == (3, 7)


def test_equal_weights_are_stored_once_and_outside_the_loop(weights: Weights) -> None:
    made = greedy_loop.joined(*parts(replace(weights, target=weights.source)), PLAIN)
    matrices = [tensor for tensor in made.graph.initializer if tuple(tensor.dims) == (TOKEN_COUNT, SIZE)]
    assert len(matrices) == 1
    (loop,) = (node for node in made.graph.node if node.op_type == "Loop")
    assert not loop.attribute[0].g.initializer


def test_a_decoder_that_takes_something_else_is_refused(weights: Weights) -> None:
    encoder, first, following = parts(weights)
    following.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["n", 1]))
    with pytest.raises(CompileError, match="its decoder takes position_ids, which one graph"):
        greedy_loop.joined(encoder, first, following, PLAIN)


def test_an_opset_that_is_too_old_is_refused(weights: Weights) -> None:
    encoder, first, following = parts(weights)
    following.opset_import[0].version = 14
    with pytest.raises(CompileError, match="opset 14, and the loop needs 15"):
        greedy_loop.joined(encoder, first, following, PLAIN)


def job(made: onnx.ModelProto, directory: Path, **more: object) -> PassJob:
    files.write(made, directory / "model.onnx")
    (directory / "out").mkdir()
    values = {"source": directory / "model.onnx", "out": directory / "out", "target": targets.resolve("x86-64-vnni")}
    return PassJob(**(values | more))  # type: ignore[arg-type]


def test_dynamic_int8_reaches_the_products_inside_the_loop(weights: Weights, tmp_path: Path) -> None:
    made = greedy_loop.joined(*parts(weights), PLAIN)
    int8_dynamic.run(job(made, tmp_path))
    quantized = files.read(tmp_path / "out" / "model.onnx", field="model")
    (loop,) = (node for node in quantized.graph.node if node.op_type == "Loop")
    kinds = [node.op_type for node in loop.attribute[0].g.node]
    assert "MatMulInteger" in kinds
    assert "MatMul" not in kinds
    assert run(quantized, *rows(5, 6))[0].shape == (5, 7)


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_rows_of_a_dynamic_loop_run_alone_and_others_need_not(weights: Weights, tmp_path: Path, precision: str) -> None:
    made = job(greedy_loop.joined(*parts(weights), PLAIN), tmp_path)
    path = made.source
    if precision == "int8-dynamic":
        int8_dynamic.run(made)
        path = made.out / "model.onnx"
    engine = load_engine("onnx", path, EngineOptions(threads=1))
    ids, mask = rows(4, 6)
    reason = row_independence.rows_mixed_by(
        path, engine, {"input_ids": ids, "attention_mask": mask}, precision=precision
    )
    engine.close()
    assert ("scales a batch by its largest value" in reason) == (precision == "int8-dynamic")
    assert not reason or precision != "fp32"


def test_static_int8_says_why_it_cannot(weights: Weights, tmp_path: Path) -> None:
    made = greedy_loop.joined(*parts(weights), PLAIN)
    ids, mask = rows(4, 6)
    examples = lambda: iter([{"input_ids": ids, "attention_mask": mask}])  # noqa: E731
    with pytest.raises(CompileError, match="products with weights are inside a loop.*use int8-dynamic"):
        int8_static.run(job(made, tmp_path, calibration=examples))
