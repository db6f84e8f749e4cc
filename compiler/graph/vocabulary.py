"""The words that a graph itself knows of its text inputs: categories, keys of tables, vocabularies.

Follows each text input to the operators that look its words up, column by column where the graph takes columns apart,
and draws text of those words. Whether the model takes others too is the business of the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import TensorProto, numpy_helper, onnx

_CATEGORIES = ("keys_strings", "cats_strings", "keys_tensor")
_POOL = "pool_strings"
_PICKS = ("Gather", "ArrayFeatureExtractor")
_ANY_WORD = "a"
_MOST_WORDS = 8  # of one text


@dataclass(slots=True)
class Words:
    """What a graph knows of one text input.

    Attributes:
        of_all: words that may be in any column.
        of_column: words of one column, by its number.
        is_prose: whether texts of several words are looked up word by word.
    """

    of_all: list[str] = field(default_factory=list)
    of_column: dict[int, list[str]] = field(default_factory=dict)
    is_prose: bool = False

    def column(self, number: int) -> list[str]:
        """Return the words of a column, each once, in the graph's order."""
        return list(dict.fromkeys((*self.of_column.get(number, ()), *self.of_all)))

    def drawn(self, sizes: Sequence[int], source: np.random.Generator) -> NDArray[Any]:
        """Draw text of known words, str objects [rows, ...]; one column is the first thing behind the rows."""
        rows, columns = sizes[0], int(np.prod(sizes[1:], dtype=np.int64))
        text = np.empty((rows, columns), dtype=object)
        for column in range(columns):
            known = self.column(column) or [_ANY_WORD]
            order = source.permutation(len(known))  # each word once before one comes again
            for row in range(rows):
                if self.is_prose:
                    count = int(source.integers(1, _MOST_WORDS, endpoint=True))
                    text[row, column] = " ".join(known[at] for at in source.integers(0, len(known), count))
                else:
                    text[row, column] = known[order[row % len(known)]]
        return text.reshape(sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor of text comes from. ``column`` is None for all columns of the input."""

    input: str
    column: int | None = None


def words_of_inputs(model: onnx.ModelProto) -> dict[str, Words]:
    """Return what a graph knows of each of its text inputs, by name; nothing where it looks up no words."""
    graph, constants = model.graph, rewrite.constants(model.graph)
    found = {i.name: Words() for i in graph.input if i.type.tensor_type.elem_type == TensorProto.STRING}
    places: dict[str, set[_Place]] = {name: {_Place(input=name)} for name in found}
    for node in graph.node:
        reached = {place for name in node.input for place in places.get(name, ())}
        if not reached:
            continue
        known = list(_looked_up(node, constants))
        for place in reached if known else ():
            _note(found[place.input], place, known, is_prose=any(a.name == _POOL for a in node.attribute))
        if not known or node.op_type == "Equal":
            column = _picked(node, constants)
            after = reached if column is None else {_Place(input=place.input, column=column) for place in reached}
            places |= dict.fromkeys(node.output, after)
    return found


def _note(words: Words, place: _Place, known: Iterable[str], *, is_prose: bool) -> None:
    words.is_prose = words.is_prose or is_prose
    (words.of_all if place.column is None else words.of_column.setdefault(place.column, [])).extend(known)


def _looked_up(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> Iterable[str]:
    for attribute in node.attribute:
        if attribute.name in (*_CATEGORIES, _POOL):
            yield from (word.decode("utf-8", "replace") for word in attribute.strings)
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.STRING:
                yield from _text(attribute.t)
    if node.op_type == "Equal":
        for name in node.input:
            if name in constants and constants[name].data_type == TensorProto.STRING:
                yield from _text(constants[name])


def _text(tensor: TensorProto) -> list[str]:
    return [word.decode("utf-8", "replace") for word in tensor.string_data]


def _picked(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> int | None:
    """Return the one column that a node takes out of its input; None for any other node."""
    if node.op_type not in _PICKS or node.input[1] not in constants:
        return None
    if node.op_type == "Gather" and rewrite.attribute(node, "axis", 0) != 1:
        return None
    indices = numpy_helper.to_array(constants[node.input[1]]).ravel()
    return int(indices[0]) if indices.size == 1 else None
