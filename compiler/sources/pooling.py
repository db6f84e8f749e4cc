"""A sentence-transformers directory's pooling as part of the graph: token embeddings in, one embedding a sentence out.

Source of the formulas: sentence-transformers' documentation of its Pooling and Normalize modules: the mean over tokens
weighs each by the attention mask, the first token stands for the sentence in "cls" mode, and a normalized embedding is
divided by its Euclidean length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from compiler.graph import files, rewrite
from compiler.graph.onnx_libraries import TensorProto, helper, numpy_helper, onnx
from compiler.sources.detection import POOLING_LIST, read_json
from penstock.errors import CompileError, ConfigError, InvalidInput

OUTPUT = "sentence_embedding"
TOKENS, MASK = "last_hidden_state", "attention_mask"
_SMALLEST_LENGTH = 1e-12  # as torch.nn.functional.normalize has it
_FEWEST_TOKENS = 1e-9
_AXES_INPUT_OPSET = 18  # ReduceL2 takes its axes as an input since then


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """``mean`` over the tokens that the mask marks, or the first token (``cls``); then unit length, if normalized."""

    mode: Literal["mean", "cls"]
    normalize: bool

    def __str__(self) -> str:
        return f"{self.mode} pooling" + (" to unit length" if self.normalize else "")


class _Module(msgspec.Struct, frozen=True, kw_only=True):
    """A line of modules.json; what else it says is not needed."""

    path: str
    type: str


def read(directory: Path) -> Pooling | None:
    """Read the pooling of a sentence-transformers directory; None where it is an ordinary one.

    Raises:
        ConfigError: modules that have no ONNX form here. InvalidInput: damaged files.
    """
    listing = directory / POOLING_LIST
    if not listing.is_file():
        return None
    try:
        modules = msgspec.json.decode(listing.read_bytes(), type=list[_Module])
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"{listing}: not a list of modules: {error}", field="model") from error
    names = [module.type.rpartition(".")[2] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(
            f"{listing}: modules {', '.join(names)}; only Transformer, Pooling and Normalize can become part of the "
            f"graph. Remove {POOLING_LIST} to export token embeddings"
        )
    if ".." in Path(modules[1].path).parts or Path(modules[1].path).is_absolute():
        raise InvalidInput(f"{listing}: path {modules[1].path!r} leaves the directory", field="model")
    return Pooling(mode=_mode(read_json(directory / modules[1].path / "config.json")), normalize=len(names) == 3)


def append(model: onnx.ModelProto, *, pooled: Pooling) -> onnx.ModelProto:
    """Append pooling to a graph, in place: one output FP32 [batch, size] in place of tokens [batch, tokens, size].

    Raises:
        CompileError: the graph does not have the tokens and the mask to pool.
    """
    graph = model.graph
    found = [value for value in graph.output if value.name == TOKENS]
    if not found or MASK not in {value.name for value in graph.input}:
        raise CompileError(f"pooling needs an output {TOKENS!r} and an input {MASK!r}, which the export does not have")
    size = found[0].type.tensor_type.shape.dim[2]
    tokens, last = TOKENS, "pooled" if pooled.normalize else OUTPUT
    if pooled.mode == "mean":
        _mean(graph, tokens, last)
    else:
        _constant(graph, "pooling_first", np.array(0, dtype=np.int64))
        graph.node.append(helper.make_node("Gather", [tokens, "pooling_first"], [last], name="pooling/first", axis=1))
    if pooled.normalize:
        _normalize(graph, last, takes_axes=files.opset(model) >= _AXES_INPUT_OPSET)
    shape: list[Any] = ["batch", size.dim_value or "size"]
    rewrite.refill(graph.output, [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)])
    return model


def _mode(config: dict[str, Any]) -> Literal["mean", "cls"]:
    chosen = sorted(name for name, value in config.items() if name.startswith("pooling_mode_") and value is True)
    named = config.get("pooling_mode")  # newer releases write one word
    if chosen == ["pooling_mode_mean_tokens"] or (not chosen and named == "mean"):
        return "mean"
    if chosen == ["pooling_mode_cls_token"] or (not chosen and named == "cls"):
        return "cls"
    raise ConfigError(
        f"pooling {', '.join(chosen) or named!r}: only the mean over tokens and the first token can become part of the "
        f"graph. Remove {POOLING_LIST} to export token embeddings"
    )


def _mean(graph: onnx.GraphProto, tokens: str, result: str) -> None:
    _constant(graph, "pooling_last", np.array([-1], dtype=np.int64))
    _constant(graph, "pooling_tokens", np.array([1], dtype=np.int64))
    _constant(graph, "pooling_fewest", np.array(_FEWEST_TOKENS, dtype=np.float32))
    graph.node.extend([
        helper.make_node("Cast", [MASK], ["pooling_mask"], name="pooling/mask", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["pooling_mask", "pooling_last"], ["pooling_weights"], name="pooling/weights"),
        helper.make_node("Mul", [tokens, "pooling_weights"], ["pooling_kept"], name="pooling/kept"),
        helper.make_node(
            "ReduceSum", ["pooling_kept", "pooling_tokens"], ["pooling_sum"], name="pooling/sum", keepdims=0
        ),
        helper.make_node(
            "ReduceSum", ["pooling_weights", "pooling_tokens"], ["pooling_count"], name="pooling/count", keepdims=0
        ),
        helper.make_node("Max", ["pooling_count", "pooling_fewest"], ["pooling_divisor"], name="pooling/divisor"),
        helper.make_node("Div", ["pooling_sum", "pooling_divisor"], [result], name="pooling/mean"),
    ])  # fmt: skip


def _normalize(graph: onnx.GraphProto, value: str, *, takes_axes: bool) -> None:
    _constant(graph, "pooling_shortest", np.array(_SMALLEST_LENGTH, dtype=np.float32))
    if takes_axes:
        _constant(graph, "pooling_size", np.array([1], dtype=np.int64))
        length = helper.make_node(
            "ReduceL2", [value, "pooling_size"], ["pooling_norm"], name="pooling/norm", keepdims=1
        )
    else:
        length = helper.make_node("ReduceL2", [value], ["pooling_norm"], name="pooling/norm", keepdims=1, axes=[1])
    graph.node.extend([
        length,
        helper.make_node("Max", ["pooling_norm", "pooling_shortest"], ["pooling_length"], name="pooling/length"),
        helper.make_node("Div", [value, "pooling_length"], [OUTPUT], name="pooling/unit"),
    ])  # fmt: skip


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray[Any, np.dtype[Any]]) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))
