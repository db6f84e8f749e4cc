"""An encoder and a decoder as one graph that generates: the encoder's inputs in, the tokens of greedy search out.

Owns the loop and what it adds: the cache as the loop's state, forced and banned tokens, rows that end, padding. A row
is answered as it is alone; only how long the loop runs depends on the batch. Which tokens are forced or banned is the
caller's business, and so is whether the result answers as the original does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import TensorProto, helper, numpy_helper, onnx
from penstock.errors import CompileError

TOKENS, PROBABILITIES = "token_ids", "token_probabilities"
_STATE, _STATE_MASK, _ENCODED = "encoder_hidden_states", "encoder_attention_mask", "last_hidden_state"
_MASK, _IDS, _LOGITS = "attention_mask", "input_ids", "logits"
_PAST, _PRESENT, _OF_ENCODER = "past_key_values.", "present.", ".encoder."
_AT, _GOING, _TOKEN, _ENDED = "greedy/at", "greedy/going", "greedy/token", "greedy/ended"
_BATCH = "batch"
_LEAST_OPSET = 15  # Shape takes a part of a shape since then
_NEVER = -1e30
"""What stands in the place of a banned token's logit: its exponential is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """Tokens that are not chosen from one step to before another; steps count generated tokens from 0."""

    tokens: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """How tokens are chosen.

    Attributes:
        prompt: what the decoder is given first; these tokens are not part of the answer.
        max_new_tokens: length of every answer, padding included.
        ends: tokens that end a row; they are part of the answer.
        pad: what fills an answer up.
        forced: the token of a step, whatever the model says; its probability is 1.
        bans: tokens that are not chosen, whatever the model says; probabilities are those among the others.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    ends: tuple[int, ...]
    pad: int
    forced: Mapping[int, int] = field(default_factory=dict)
    bans: tuple[Ban, ...] = ()


def joined(
    encoder: onnx.ModelProto, first: onnx.ModelProto, following: onnx.ModelProto, greedy: Greedy
) -> onnx.ModelProto:
    """Join what Optimum exports of an encoder-decoder.

    Args:
        encoder: from its inputs to ``last_hidden_state``.
        first: the decoder without a cache. Only keys and values of the encoder's states are taken from it.
        following: the decoder with a cache, a token at a time. Here it begins with an empty one.

    Returns:
        a graph with the encoder's inputs, and outputs ``token_ids`` INT64 and ``token_probabilities`` FP32, both
        [batch, max_new_tokens]. Behind the end of a row are ``pad`` and probability 0.

    Raises:
        CompileError: graphs of another form.
    """
    _check_form(encoder, following)
    version = max(entry.version for entry in following.opset_import if entry.domain in rewrite.STANDARD_DOMAINS)
    if version < _LEAST_OPSET:
        raise CompileError(f"it is of opset {version}, and the loop needs {_LEAST_OPSET} or newer (source.opset)")
    graph = onnx.GraphProto(name="encoder_decoder")
    graph.input.extend(encoder.graph.input)
    encoded = _take(graph, encoder, "encoder/", {})[_ENCODED]
    start = _Nodes(graph, graph)
    rows = start("Shape", [encoded], end=1)
    begin = start("Expand", [start.whole([[greedy.prompt[0]]]), start("Concat", [rows, start.whole([1])], axis=0)])
    given = {_STATE: encoded, _STATE_MASK: _MASK}
    given |= _bridge(graph, first, {**given, _IDS: begin})
    caches = [value for value in following.graph.input if value.name.startswith(_PAST) and value.name not in given]
    body = _step(graph, following, caches, given, greedy)
    _answer(start, greedy, _loop(start, body, caches, (rows, begin), greedy))
    shape = [_BATCH, greedy.max_new_tokens]
    graph.output.extend([
        helper.make_tensor_value_info(TOKENS, TensorProto.INT64, shape),
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, shape),
    ])  # fmt: skip
    made = helper.make_model(graph, opset_imports=following.opset_import, ir_version=following.ir_version)
    _merge_weights(made.graph)
    return made


def _check_form(encoder: onnx.ModelProto, following: onnx.ModelProto) -> None:
    takes, gives = ({value.name for value in values} for values in (following.graph.input, following.graph.output))
    known = {_IDS, _STATE, _STATE_MASK} | {name for name in takes if name.startswith(_PAST)}
    if takes - known or _IDS not in takes or _LOGITS not in gives:
        raise CompileError(
            f"its decoder takes {', '.join(sorted(takes - known) or sorted(takes))}, which one graph of encoder and "
            "decoder has no place for"
        )
    has_mask = _MASK in {value.name for value in encoder.graph.input}
    if _ENCODED not in {value.name for value in encoder.graph.output} or (_STATE_MASK in takes and not has_mask):
        raise CompileError(f"its encoder does not give the decoder {_ENCODED} with the mask of its own inputs")


def _bridge(graph: onnx.GraphProto, first: onnx.ModelProto, given: Mapping[str, str]) -> dict[str, str]:
    """Add what makes keys and values of the encoder's states; return them by the names under which the decoder takes
    them. Of the decoder's first tokens it reads how many rows there are, if anything.
    """
    bridge = rewrite.copied(first)
    rewrite.refill(bridge.graph.output, [value for value in first.graph.output if _OF_ENCODER in value.name])
    rewrite.drop_dead(bridge.graph)
    if not bridge.graph.output:
        raise CompileError("its decoder keeps no keys and values of the encoder's states")
    made = _take(graph, bridge, "bridge/", given)
    return {_PAST + name.removeprefix(_PRESENT): tensor for name, tensor in made.items()}


def _take(graph: onnx.GraphProto, model: onnx.ModelProto, prefix: str, given: Mapping[str, str]) -> dict[str, str]:
    """Add the nodes and weights of a model to a graph; return its outputs by the names they had.

    Args:
        given: what its inputs are in the graph; others keep their names.
    """
    part = onnx.compose.add_prefix_graph(model.graph, prefix)
    taken = {prefix + value.name: given.get(value.name, value.name) for value in model.graph.input}
    for inner in rewrite.graphs(part):
        for node in inner.node:
            node.input[:] = [taken.get(name, name) for name in node.input]
    graph.node.extend(part.node)
    graph.initializer.extend(part.initializer)
    return {value.name: prefix + value.name for value in model.graph.output}


class _Nodes:
    """Adds nodes to a graph, and constants to the one around it."""

    def __init__(self, graph: onnx.GraphProto, around: onnx.GraphProto) -> None:
        self._graph, self._around, self._count = graph, around, 0

    def __call__(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or self._named(kind)
        self._graph.node.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def whole(self, value: Any) -> str:
        """Add whole numbers."""
        return self.constant(np.array(value, dtype=np.int64))

    def constant(self, value: np.ndarray[Any, np.dtype[Any]]) -> str:
        """Add an array."""
        name = self._named("constant")
        self._around.initializer.append(numpy_helper.from_array(value, name))
        return name

    def loop(self, inputs: Sequence[str], body: onnx.GraphProto) -> tuple[str, str]:
        """Add a loop of which only the two collected outputs are read."""
        unread = [self._named("left") for _ in inputs[2:]]
        collected = (self._named("tokens"), self._named("probabilities"))
        node = helper.make_node("Loop", list(inputs), [*unread, *collected], name=self._named("Loop"), body=body)
        self._graph.node.append(node)
        return collected

    def _named(self, kind: str) -> str:
        self._count += 1
        return f"{self._graph.name}/{kind}_{self._count}"


def _step(
    graph: onnx.GraphProto,
    following: onnx.ModelProto,
    caches: Sequence[onnx.ValueInfoProto],
    given: Mapping[str, str],
    greedy: Greedy,
) -> onnx.GraphProto:
    """Return one step of the loop; its weights go into the graph around it, where passes and files look for them."""
    body = onnx.GraphProto(name="greedy_step")
    own = {value.name: f"cache/{value.name}" for value in caches}
    made = _take(body, following, "decoder/", {_IDS: _TOKEN, **given, **own})
    graph.initializer.extend(body.initializer)
    del body.initializer[:]
    nodes, column = _Nodes(body, graph), [_BATCH, 1]
    at = nodes("Sub", [_AT, nodes.whole(len(greedy.prompt) - 1)])
    chosen, sure = _choice(nodes, nodes("Squeeze", [made[_LOGITS], nodes.whole([1])]), at, greedy)
    token = nodes("Where", [_ENDED, nodes.whole(greedy.pad), chosen])
    ended = nodes("Or", [_ENDED, _is_end(nodes, chosen, at, greedy.ends)])
    left = nodes("ReduceSum", [nodes("Cast", [nodes("Not", [ended])], to=TensorProto.INT64)], keepdims=0)
    going = nodes("Cast", [left], to=TensorProto.BOOL)
    said = nodes("Identity", [token])  # what is carried on and what is collected cannot be one tensor
    kept = nodes("Where", [_ENDED, nodes.constant(np.array(0, np.float32)), sure])
    body.input.extend([
        helper.make_tensor_value_info(_AT, TensorProto.INT64, []),
        helper.make_tensor_value_info(_GOING, TensorProto.BOOL, []),
        helper.make_tensor_value_info(_TOKEN, TensorProto.INT64, column),
        helper.make_tensor_value_info(_ENDED, TensorProto.BOOL, column),
        *(_cache(value, own[value.name]) for value in caches),
    ])  # fmt: skip
    body.output.extend([
        helper.make_tensor_value_info(going, TensorProto.BOOL, []),
        helper.make_tensor_value_info(token, TensorProto.INT64, column),
        helper.make_tensor_value_info(ended, TensorProto.BOOL, column),
        *(_cache(value, made[_PRESENT + value.name.removeprefix(_PAST)]) for value in caches),
        helper.make_tensor_value_info(said, TensorProto.INT64, column),
        helper.make_tensor_value_info(kept, TensorProto.FLOAT, column),
    ])  # fmt: skip
    return body


def _cache(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Return a cache under another name: [batch, heads, tokens so far, size]."""
    _, heads, _, size = value.type.tensor_type.shape.dim
    shape = [_BATCH, heads.dim_value, None, size.dim_value]
    return helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shape)


def _choice(nodes: _Nodes, logits: str, at: str, greedy: Greedy) -> tuple[str, str]:
    """Return the token of a step and its probability, [batch, 1] each."""
    for ban in greedy.bans:
        logits = _banned(nodes, logits, at, ban)
    chosen = nodes("ArgMax", [logits], axis=1, keepdims=1)
    sure = nodes("GatherElements", [nodes("Softmax", [logits], axis=1), chosen], axis=1)
    # the rest of the prompt is forced like any other token, at steps before the first
    prompted = {place - len(greedy.prompt): token for place, token in enumerate(greedy.prompt) if place > 0}
    for place, token in {**prompted, **greedy.forced}.items():
        is_now = nodes("Equal", [at, nodes.whole(place)])
        chosen = nodes("Where", [is_now, nodes.whole(token), chosen])
        sure = nodes("Where", [is_now, nodes.constant(np.array(1, np.float32)), sure])
    return chosen, sure


def _banned(nodes: _Nodes, logits: str, at: str, ban: Ban) -> str:
    """Return logits [batch, tokens] without those that are banned at a step."""
    size = nodes("Shape", [logits], start=1)
    banned = nodes(
        "ScatterElements",
        [
            nodes("ConstantOfShape", [size], value=numpy_helper.from_array(np.zeros(1, dtype=np.bool_))),
            nodes.whole(ban.tokens),
            nodes.constant(np.ones(len(ban.tokens), dtype=np.bool_)),
        ],
    )
    has_begun = nodes("GreaterOrEqual", [at, nodes.whole(ban.first)])
    is_now = nodes("And", [has_begun, nodes("Less", [at, nodes.whole(ban.end)])])
    return nodes("Where", [nodes("And", [banned, is_now]), nodes.constant(np.array(_NEVER, np.float32)), logits])


def _is_end(nodes: _Nodes, chosen: str, at: str, ends: Sequence[int]) -> str:
    """Say for each row [batch, 1] whether it ends; a token of the prompt ends none, whatever it is."""
    is_one = nodes("Cast", [nodes("Equal", [chosen, nodes.whole(ends)])], to=TensorProto.INT64)
    is_end = nodes("Cast", [nodes("ReduceSum", [is_one, nodes.whole([1])], keepdims=1)], to=TensorProto.BOOL)
    return nodes("And", [is_end, nodes("GreaterOrEqual", [at, nodes.whole(0)])])


def _loop(
    nodes: _Nodes,
    body: onnx.GraphProto,
    caches: Sequence[onnx.ValueInfoProto],
    start: tuple[str, str],
    greedy: Greedy,
) -> tuple[str, str]:
    """Add the loop; return what it collects: tokens and probabilities, [steps, batch, 1] each.

    Args:
        start: the number of rows, and the token that each begins with.
    """
    rows, begin = start
    state = [begin, nodes("Cast", [nodes("Mul", [begin, nodes.whole(0)])], to=TensorProto.BOOL)]
    for value in caches:
        _, heads, _, size = value.type.tensor_type.shape.dim
        shape = nodes("Concat", [rows, nodes.whole([heads.dim_value, 0, size.dim_value])], axis=0)
        state.append(nodes("ConstantOfShape", [shape], value=numpy_helper.from_array(np.zeros(1, np.float32))))
    steps = nodes.whole(len(greedy.prompt) - 1 + greedy.max_new_tokens)
    return nodes.loop([steps, nodes.constant(np.array(True)), *state], body)


def _answer(nodes: _Nodes, greedy: Greedy, collected: tuple[str, str]) -> None:
    """Make what the loop collected an answer of one length, without the prompt."""
    fills = (nodes.whole(greedy.pad), nodes.constant(np.array(0, np.float32)))
    for name, fill, output in zip(collected, fills, (TOKENS, PROBABILITIES), strict=True):
        by_row = nodes("Transpose", [nodes("Squeeze", [name, nodes.whole([2])])], perm=[1, 0])
        told = nodes.whole([len(greedy.prompt) - 1])
        answer = nodes("Slice", [by_row, told, nodes.whole([2**31]), nodes.whole([1])])
        missing = nodes("Sub", [nodes.whole([greedy.max_new_tokens]), nodes("Shape", [answer], start=1)])
        nodes("Pad", [answer, nodes("Concat", [nodes.whole([0, 0, 0]), missing], axis=0), fill], output)


def _merge_weights(graph: onnx.GraphProto) -> None:
    """Store equal weights once, in the graph itself: encoder and decoder share their embeddings."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
        same[tensor.name] = first.setdefault(key, tensor.name)
        if same[tensor.name] == tensor.name:
            kept.append(tensor)
    rewrite.refill(graph.initializer, kept)
    for inner in rewrite.graphs(graph):
        for node in inner.node:
            node.input[:] = [same.get(name, name) for name in node.input]
