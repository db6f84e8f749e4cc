"""Examples at every size that a model is made for, where a recipe holds free dimensions to a few (``model.shapes``).

Owns how rows of one size become rows of another: cut at the end, or begun again from the start. Their values stay real
ones, which is what ranges, timings and comparisons of two models need. They are no examples of that size: what is
right for them nobody says, so labels do not travel, and nothing is certified on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import msgspec
import numpy as np

from compiler.data.dataset import Split
from compiler.recipe.shapes_section import Dimension
from penstock import wording
from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, TensorSpec


def with_sizes(specs: Sequence[TensorSpec], dimensions: Sequence[Dimension]) -> tuple[TensorSpec, ...]:
    """Return specs that say which sizes their free dimensions may have."""
    allowed = {place: dimension.sizes for dimension in dimensions for place in dimension.axes}
    found = []
    for spec in specs:
        sizes = tuple(allowed.get((spec.name, axis), ()) for axis in range(len(spec.shape)))
        found.append(msgspec.structs.replace(spec, sizes=sizes) if any(sizes) else spec)
    return tuple(found)


def others(split: Split) -> Iterator[tuple[str, Split]]:
    """Yield the rows of a split at every combination of sizes but their own, each named for people."""
    named = [dimension.name for dimension in split.dimensions]
    own = tuple(_size(split.inputs, dimension) for dimension in split.dimensions)
    for sizes in product(*(dimension.sizes for dimension in split.dimensions)):
        if sizes == own:
            continue
        label = ", ".join(f"{name} {size}" for name, size in zip(named, sizes, strict=True))
        inputs = dict(split.inputs)
        for dimension, size in zip(split.dimensions, sizes, strict=True):
            for name, axis in dimension.axes:
                inputs[name] = np.take(inputs[name], np.arange(size) % inputs[name].shape[axis], axis=axis)
        yield label, Split(name=f"{split.name} at {label}", inputs=inputs, labels=None, clusters=split.clusters)


def check_room(split: Split, max_bytes: int) -> None:
    """Check that the rows of a split may be as large as the largest sizes make them.

    Raises:
        InvalidInput: they take more than ``max_bytes``.
    """
    total = 0
    for name, array in split.inputs.items():
        size = int(array.nbytes)
        for dimension in split.dimensions:
            for _, axis in (place for place in dimension.axes if place[0] == name):
                size = size // array.shape[axis] * dimension.sizes[-1]
        total += size
    if total > max_bytes and split.dimensions:
        at = ", ".join(f"{dimension.name} {dimension.sizes[-1]}" for dimension in split.dimensions)
        raise InvalidInput(
            f"model.shapes: {split.rows} examples of {at} are {wording.size(total)}, at most {wording.size(max_bytes)} "
            "(data.limits.max_bytes); list smaller sizes, or give fewer examples",
            field="model.shapes",
        )


def _size(inputs: Mapping[str, Array], dimension: Dimension) -> int:
    name, axis = dimension.axes[0]
    return int(inputs[name].shape[axis])
