"""Rows that the cloud's model is asked: of our making where it takes them, else the first of the examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.data import Split
from compiler.pipeline import arrays
from compiler.pipeline.cached_steps import Model
from compiler.recipe import recipes
from compiler.recipe.data_section import DataSection
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array

ML = "ai.onnx.ml"


@pytest.fixture
def strict(tmp_path: Path) -> Model:
    """A city and a year, encoded by an encoder that refuses years which it does not know."""
    nodes = [
        helper.make_node("Cast", ["year"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("OneHotEncoder", ["whole"], ["years"], domain=ML, cats_int64s=[2019, 2020], zeros=0),
        helper.make_node("OneHotEncoder", ["city"], ["cities"], domain=ML, cats_strings=["Bern", "Genf"], zeros=1),
        helper.make_node("Concat", ["years", "cities"], ["both"], axis=2),
        helper.make_node("Flatten", ["both"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "strict",
        [
            helper.make_tensor_value_info("year", onnx.TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("city", onnx.TensorProto.STRING, ["n", 1]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    return Model(path=tmp_path / "m.onnx", content="strict")


def rows_for(model: Model, year: float) -> dict[str, Array]:
    examples = Split(
        name="fit",
        inputs={"year": np.full((20, 1), year, np.float32), "city": np.full((20, 1), "Bern", object)},
        labels=None,
        groups=None,
    )
    recipe = recipes.of_model(str(model.path), DataSection(source="data.npz"), base=model.path.parent)
    inputs = load_engine("onnx", model.path, EngineOptions()).inputs
    return arrays._cloud_rows(recipe, model, inputs, examples)


def test_a_model_that_refuses_numbers_of_our_making_is_asked_the_first_examples(strict: Model) -> None:
    rows = rows_for(strict, 2020)
    assert set(rows["year"].ravel().tolist()) == {2020.0}


def test_a_model_that_refuses_the_examples_too_says_so(strict: Model) -> None:
    with pytest.raises(
        CompileError, match="refuses inputs of our making .* and the first examples, too: .*handle_unkn"
    ):
        rows_for(strict, 1999)
