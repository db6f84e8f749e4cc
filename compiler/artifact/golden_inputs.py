"""What variants are asked for their golden vectors, and to see whether their rows are independent.

Owns that the cloud's rows depend on its model and its recipe alone, never on the edge's examples: numbers are noise
from a fixed seed, and text is made of the words that the model itself knows. Only the sizes that a model leaves open
are those of the examples (docs/adr/0033-shapes-of-real-rows.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.data import Split
from compiler.graph.vocabulary import Words
from penstock.policy.decoding import Decoder
from penstock.wire.tensors import Array, TensorSpec, numpy_dtype

ROWS, ROWS_AT_OTHER_SIZES = 16, 4
_TRIED_FOR_TOKENS, _SHARE_KEPT = 64, 4

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_SEED = 0
_FREE_DIMENSION = 8  # where the model leaves a dimension other than the batch free, and no row says more
_UNKNOWN = ("penstock", "")  # at the end: what clients send, too


def rows_of(split: Split) -> Split:
    """Take the first rows of a split. They travel to devices, so never those of the certifying one."""
    return split.take(slice(0, ROWS), name="golden")


def of_edge(split: Split) -> dict[str, Array]:
    """Return the inputs of the first rows of a split."""
    return dict(rows_of(split).inputs)


def of_cloud(
    specs: tuple[TensorSpec, ...],
    value_range: tuple[float, float] | None,
    words: Mapping[str, Words] | None = None,
    *,
    like: Mapping[str, Array] | None = None,
    has_unknown: bool = True,
) -> dict[str, Array]:
    """Draw noise over the declared range, else 0 to 1, and words that the model knows: equal for all who share it.

    Args:
        words: by text input.
        like: real rows by input. A dimension that the model leaves open is as large as theirs: a detector takes no
            picture of any size.
        has_unknown: whether the last rows hold a word that no model knows, and no text at all.
    """
    low, high = value_range or (0.0, 1.0)
    source, source_of_words = np.random.default_rng(_SEED), np.random.default_rng(_SEED)
    inputs: dict[str, Array] = {}
    for spec in specs:
        shape = (ROWS, *_row_shape(spec, (like or {}).get(spec.name)))
        dtype = numpy_dtype(spec.datatype)
        if dtype.kind == "O":
            inputs[spec.name] = _text(spec, (words or {}).get(spec.name, Words()), source_of_words, has_unknown)
        elif dtype.kind == "f":
            inputs[spec.name] = source.uniform(low, high, shape).astype(dtype)
        else:
            inputs[spec.name] = source.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
    return inputs


def steady(inputs: Mapping[str, Array], run: Run, decoder: Decoder) -> Mapping[str, Array]:
    """Return rows whose answers another machine's rounding will not change, where answers are generated tokens: of the
    first 64 the quarter that the model is surest of. Other answers move no further than their numbers do.

    A token that is chosen by a hair would be another one elsewhere, and so would all behind it: a sound variant would
    be refused.
    """
    if decoder.decoding.form != "tokens":
        return inputs
    rows = {name: array[:_TRIED_FOR_TOKENS] for name, array in inputs.items()}
    count = len(next(iter(rows.values())))
    alone = [run({name: array[at : at + 1] for name, array in rows.items()}) for at in range(count)]
    sure = np.concatenate([decoder.score(outputs, name=decoder.scores[0]) for outputs in alone])
    order = np.argsort(-np.nan_to_num(sure), kind="stable")[: max(1, count // _SHARE_KEPT)]
    return {name: array[order] for name, array in rows.items()}


def _row_shape(spec: TensorSpec, row: Array | None) -> tuple[int, ...]:
    sizes = spec.shape[1:] if row is None else row.shape[1:]
    return tuple(_FREE_DIMENSION if size == -1 else size for size in sizes)


def _text(spec: TensorSpec, words: Words, source: np.random.Generator, has_unknown: bool) -> NDArray[Any]:
    free = 1 + max(words.of_column, default=0)  # columns, where their number is free
    rows = words.drawn([ROWS, *(free if size == -1 else size for size in spec.shape[1:])], source)
    for row, text in enumerate(_UNKNOWN if has_unknown else (), start=ROWS - len(_UNKNOWN)):
        rows[row] = text
    return rows
