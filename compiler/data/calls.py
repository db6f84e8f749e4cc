"""Models that take one example a call: a batch frozen to 1, a state on another axis, a number beside the rows.

Owns how examples of such a model look, [N, ...] like all others, and how one of them becomes a call. A model whose
inputs all begin with a free dimension has rows, and nothing here changes anything for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from compiler.data import buckets
from compiler.data.dataset import Split, batches
from penstock.runtime import Engine
from penstock.wire.tensors import Array, TensorSpec


def has_rows(inputs: Sequence[TensorSpec]) -> bool:
    """Say whether a model with these inputs can be asked for several examples at once."""
    return all(spec.shape[:1] == (-1,) for spec in inputs)


def as_rows(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Describe examples: a first dimension of 1 (or a free one) becomes theirs, and other tensors get one in front."""
    return tuple(msgspec.structs.replace(spec, shape=(-1, *(spec.shape[_is_row(spec) :]))) for spec in specs)


def call(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], *, row: int) -> dict[str, Array]:
    """Make one call of an example; tensors without any dimension come last, since they say nothing of its size."""
    order = sorted(specs, key=lambda spec: not spec.shape)
    return {
        spec.name: inputs[spec.name][row : row + 1] if _is_row(spec) else np.asarray(inputs[spec.name][row])
        for spec in order
    }


def first(inputs: Mapping[str, Array], specs: Sequence[TensorSpec], *, rows: int) -> dict[str, Array]:
    """Return the first examples as one call: as many of ``rows`` as the model takes at once."""
    if has_rows(specs):
        return {name: array[:rows] for name, array in inputs.items()}
    return call(inputs, specs, row=0)


def each(split: Split, size: int, specs: Sequence[TensorSpec]) -> Iterator[dict[str, Array]]:
    """Yield all examples in order: in batches of at most ``size``, or call by call where the model takes no more."""
    if has_rows(specs):
        yield from batches(split, size)
        return
    for row in range(split.rows):
        yield call(split.inputs, specs, row=row)


def at_each_size(split: Split, size: int, specs: Sequence[TensorSpec]) -> Iterator[dict[str, Array]]:
    """Yield all examples as :func:`each` does, and each batch again at every other size that the model is made for."""
    if not split.dimensions:
        yield from each(split, size, specs)
        return
    size = size if has_rows(specs) else 1
    for start in range(0, split.rows, size):
        some = split.take(slice(start, start + size), name=split.name)
        yield from each(some, size, specs)
        for _, other in buckets.others(some):
            yield from each(other, size, specs)


def by_rows(engine: Engine) -> Engine:
    """Return an engine that takes examples as rows: the same, or one that asks it call by call."""
    return engine if has_rows(engine.inputs) else _ByCall(engine)


class _ByCall:
    """An engine asked one example at a time; its answers are put together again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.inputs, self.outputs = as_rows(engine.inputs), as_rows(engine.outputs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        rows = len(next(iter(inputs.values())))
        specs = {spec.name: spec for spec in self._engine.outputs}
        parts = [self._engine.run(call(inputs, self._engine.inputs, row=row), outputs) for row in range(rows)]
        return {
            name: np.concatenate([part[name] if _is_row(specs[name]) else part[name][None] for part in parts])
            for name in parts[0]
        }

    def close(self) -> None:
        self._engine.close()


def _is_row(spec: TensorSpec) -> bool:
    return spec.shape[:1] in ((1,), (-1,))
