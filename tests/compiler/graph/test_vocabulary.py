"""The words that graphs know, by text input and column, in graphs that skl2onnx and others write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.graph import equivalence, vocabulary
from compiler.graph.vocabulary import Words
from tests.compiler import text_models
from tests.compiler.text_models import CITIES, SIZES


def known(directory: Path, kind: str) -> dict[str, Words]:
    text_models.make(kind, directory)
    return vocabulary.words_of_inputs(onnx.load(directory / "edge.onnx"))


@pytest.mark.parametrize("kind", ["categories", "ordinal"])
def test_each_column_has_its_own_words(tmp_path: Path, kind: str) -> None:
    (words,) = known(tmp_path, kind).values()
    assert (set(words.column(0)), set(words.column(1))) == (set(CITIES), set(SIZES))
    assert (words.column(2), words.is_prose) == ([], False)


def test_each_input_has_its_own_words(tmp_path: Path) -> None:
    words = known(tmp_path, "mixed")
    assert set(words) == {"city", "size"}
    assert (set(words["city"].column(0)), set(words["size"].column(0))) == (set(CITIES), set(SIZES))


def test_a_vocabulary_is_prose(tmp_path: Path) -> None:
    (words,) = known(tmp_path, "texts").values()
    assert words.is_prose
    assert {"schön", "ärger", "wetter"} <= set(words.column(0))


def test_text_that_is_compared_with_a_constant_is_known() -> None:
    nodes = [helper.make_node("Equal", ["x", "yes"], ["is"]), helper.make_node("Cast", ["is"], ["y"], to=1)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.array(["ja"], dtype=object), "yes")],
    )
    found = vocabulary.words_of_inputs(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert found["x"].column(0) == ["ja"]


def test_graphs_are_compared_with_their_own_words(tmp_path: Path) -> None:
    text_models.make("mixed", tmp_path)
    (feeds,) = equivalence.examples(onnx.load(tmp_path / "edge.onnx"), None, seed=0)
    assert set(feeds["city"].ravel()) <= set(CITIES)
    assert set(feeds["size"].ravel()) <= set(SIZES)
