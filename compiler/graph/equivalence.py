"""Running graphs to see that a change of one has not changed what it computes: inputs, sessions, differences.

Owns what "the same" means: numbers are compared relative to the largest one of their output, everything else must be
equal. Nothing here measures speed or accuracy on a task.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from compiler.graph import files, vocabulary
from compiler.graph.onnx_libraries import helper, onnx, ort, session_options
from penstock.errors import CompileError
from penstock.wire.tensors import Array

Feeds = dict[str, Array]
Examples = Callable[[], Iterator[Feeds]] | None

Level = Literal["written", "fused", "device"]
_LEVELS = {
    "written": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "fused": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "device": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_BATCHES, _ROWS = 2, 8
"""Of given examples, what is used for a comparison."""
_FIRST, _OTHERS = 2, (8, 16, 32, 64, 224, 1)
"""Sizes tried for free dimensions, the batch and all others, until the graph runs: smaller images end in nothing."""
_ROUNDING: Mapping[str, float] = {"float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Relative differences that are none for numbers this short: twice their spacing."""
_REASON_CHARACTERS = 300
_MOST_IN_MEMORY_BYTES = files.MAX_MODEL_BYTES - 2**26
"""Of weights; a graph with more goes to onnxruntime through a file, because protobuf cannot hold it as one message."""


class Session:
    """A graph that can be run.

    Args:
        level: ``written`` runs the graph as it is; ``fused`` lets onnxruntime merge operators; ``device`` is what it
            does by default: it also lays out tensors for this processor, which can move the last bit of a sum.

    Raises:
        CompileError: onnxruntime cannot load it.
    """

    def __init__(self, model: onnx.ModelProto, *, level: Level = "written") -> None:
        try:
            self._session = opened(model, session_options(_LEVELS[level]))
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise CompileError(f"onnxruntime cannot load the graph: {_reason(error)}") from error
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph; return outputs by name: arrays, or lists where an output is a sequence.

        Raises:
            CompileError: onnxruntime fails on these inputs.
        """
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))
        except Exception as error:
            raise CompileError(f"onnxruntime cannot run the graph: {_reason(error)}") from error


def opened(model: onnx.ModelProto, options: ort.SessionOptions) -> Any:
    """Open an onnxruntime session on the CPU, for a model of any size; its exceptions are onnxruntime's."""
    if weight_bytes(model) < _MOST_IN_MEMORY_BYTES:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="penstock-session-") as directory:
        path = Path(directory) / "model.onnx"
        files.write(model, path)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of a graph's initializers, which are nearly all of a model file."""
    return sum(len(t.raw_data) or t.ByteSize() for t in model.graph.initializer)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_REASON_CHARACTERS]


def examples(model: onnx.ModelProto, given: Examples, *, seed: int) -> list[Feeds]:
    """Return what a graph is asked when it is compared with another: a few of the given examples, else inputs from a
    seed.

    Seeded numbers are normal, whole numbers are 0 and 1: every vocabulary has two entries. Text is made of words that
    the graph knows.

    Raises:
        CompileError: without given examples, when no inputs of our making suit the graph.
    """
    if given is not None:
        found = _some(given())
        if found:
            return _few_rows(model, found)
    session = Session(model)
    reason = ""
    for size in _OTHERS:
        feeds = _seeded(model, size, np.random.default_rng(seed))
        try:
            session.run(feeds)
        except CompileError as error:
            reason = error.message
            continue
        return [feeds]
    raise CompileError(
        f"no inputs of our making suit the model, so that no change of it can be checked; {_ASK}: {reason}"
    )


def _some(batches: Iterable[Feeds]) -> list[Feeds]:
    """Take the first batches, and those behind them as long as each brings other sizes."""
    found: list[Feeds] = []
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for batch in batches:
        # a sequence of tensors has no shape
        sizes = tuple(array.shape[1:] if isinstance(array, np.ndarray) else () for array in batch.values())
        if len(found) >= _BATCHES and sizes in seen:
            break
        found.append(batch)
        seen.add(sizes)
    return found


def _few_rows(model: onnx.ModelProto, batches: list[Feeds]) -> list[Feeds]:
    """Return the first rows of batches; all where the inputs are no rows of one batch, or the graph wants so many."""
    cut = [_first_rows(batch) for batch in batches]
    if any(few is not batch for few, batch in zip(cut, batches, strict=True)):
        try:
            Session(model).run(cut[0])
        except CompileError:
            return batches
    return cut


def _first_rows(batch: Feeds) -> Feeds:
    lengths = {len(value) if isinstance(value, np.ndarray) and value.ndim else -1 for value in batch.values()}
    is_batch = len(lengths) == 1 and max(lengths) > _ROWS
    return {name: value[:_ROWS] for name, value in batch.items()} if is_batch else batch


_ASK = "give it examples (the data section of the recipe)"


def _seeded(model: onnx.ModelProto, size: int, source: np.random.Generator) -> Feeds:
    graph = model.graph
    sizes: dict[str, int] = {}
    words = vocabulary.words_of_inputs(model)
    fixed = {tensor.name for tensor in graph.initializer}
    return {
        value.name: words[value.name].drawn(_shape(value, sizes, size), source)
        if value.name in words
        else _drawn(value, _shape(value, sizes, size), source)
        for value in graph.input
        if value.name not in fixed
    }


def _shape(value: onnx.ValueInfoProto, sizes: dict[str, int], size: int) -> tuple[int, ...]:
    """Choose a shape for an input; equal names of free dimensions get equal sizes."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise CompileError(f"input {value.name!r} is no tensor of known rank, so that none can be made up; {_ASK}")
    return tuple(
        dim.dim_value
        if dim.HasField("dim_value")
        else sizes.setdefault(dim.dim_param or f"{value.name}:{axis}", size if axis else _FIRST)
        for axis, dim in enumerate(kind.shape.dim)
    )


def _drawn(value: onnx.ValueInfoProto, shape: tuple[int, ...], source: np.random.Generator) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if dtype.kind in "iub":
        return source.integers(0, 2, shape).astype(dtype)
    return source.normal(size=shape).astype(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far an output is from what was expected.

    Attributes:
        relative: largest difference over the largest expected magnitude; for what is no float, the share of unequal
            values; infinite where shapes, types or the places of NaN and infinity differ.
        text: the same for people.
    """

    output: str
    relative: float
    text: str


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Difference:
    """Return the worst difference over all outputs.

    Raises:
        CompileError: an output is missing.
    """
    missing = expected.keys() - found.keys()
    if missing:
        raise CompileError(f"output {min(missing)!r} is gone")
    each = [_apart(name, expected[name], found[name]) for name in expected]
    return max(each, key=lambda one: one.relative, default=Difference(output="", relative=0.0, text="no outputs"))


def _apart(name: str, expected: Any, found: Any) -> Difference:
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return Difference(output=name, relative=np.inf, text="another number of elements")
        parts = [_apart(name, left, right) for left, right in zip(expected, found, strict=True)]
        return max(parts, key=lambda one: one.relative, default=Difference(output=name, relative=0.0, text="empty"))
    if not isinstance(expected, np.ndarray):
        is_same = type(expected) is type(found) and expected == found
        return Difference(output=name, relative=0.0 if is_same else np.inf, text=f"{found!r:.40}, not {expected!r:.40}")
    if not isinstance(found, np.ndarray) or found.shape != expected.shape or found.dtype != expected.dtype:
        have = f"{found.dtype}{list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
        return Difference(output=name, relative=np.inf, text=f"{have}, expected {expected.dtype}{list(expected.shape)}")
    if expected.dtype.kind in "iubOSU" or not expected.size:
        share = float(np.mean(expected != found)) if expected.size else 0.0
        return Difference(output=name, relative=share, text=f"{share:.2%} of the values are others")
    return _numbers_apart(name, expected, found)


def _numbers_apart(name: str, expected: Array, found: Array) -> Difference:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    left, right = expected.astype(wide), found.astype(wide)
    usual = np.isfinite(left)
    if not np.array_equal(usual, np.isfinite(right)) or not np.array_equal(left[~usual], right[~usual], equal_nan=True):
        count = int(np.sum(usual & ~np.isfinite(right)))
        return Difference(output=name, relative=np.inf, text=f"{count} values became NaN or infinite, or stopped to be")
    if not usual.any():
        return Difference(output=name, relative=0.0, text="no finite values")
    largest = float(np.max(np.abs(left[usual])))
    worst = float(np.max(np.abs(left[usual] - right[usual])))
    relative = worst / largest if largest else worst
    if relative <= _ROUNDING.get(str(expected.dtype), 0.0):
        relative = 0.0
    return Difference(
        output=name, relative=relative, text=f"off by {worst:.3g} where the largest value is {largest:.3g}"
    )


class Runnable(Protocol):
    """A graph, or several that act as one."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]: ...


def same(expected: Runnable, found: Runnable, asked: Sequence[Feeds], *, tolerance: float, what: str) -> Difference:
    """Compare two graphs on some inputs; the worst difference found.

    Args:
        tolerance: largest relative difference (see :class:`Difference`).

    Raises:
        CompileError: they differ by more; the message starts with ``what`` and shows by how much, and where.
    """
    worst = Difference(output="", relative=0.0, text="nothing compared")
    for feeds in asked:
        reference = expected.run(feeds)
        apart = difference(reference, found.run(feeds))
        if apart.relative > tolerance:
            again = difference(reference, expected.run(feeds))
            if again.relative > tolerance:
                raise CompileError(
                    f"{what}: output {again.output!r} of the model itself is random; it cannot be checked"
                )
            raise CompileError(f"{what}: output {apart.output!r} is {apart.text}; {tolerance:g} of that is allowed")
        worst = max(worst, apart, key=lambda one: one.relative)
    return worst
