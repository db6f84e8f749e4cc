"""Text through onnxruntime: what travels as bytes is text for the model, and text for whoever asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.errors import InvalidInput
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire.tensors import Array

COLOURS = ["red", "green", "bläu", "", "pink"]


def encoder(path: Path) -> Engine:
    """Text to number, and text to another text."""
    colour, shape = "colour", ["n", 1]
    graph = helper.make_graph(
        [
            helper.make_node(
                "LabelEncoder",
                [colour],
                ["code"],
                domain="ai.onnx.ml",
                keys_strings=["red", "green", "bläu"],
                values_int64s=[1, 2, 3],
                default_int64=-1,
            ),
            helper.make_node(
                "LabelEncoder",
                [colour],
                ["name"],
                domain="ai.onnx.ml",
                keys_strings=["red", "bläu"],
                values_strings=["rouge", "blåt"],
                default_string="?",
            ),
        ],
        "colours",
        [helper.make_tensor_value_info(colour, TensorProto.STRING, shape)],
        [
            helper.make_tensor_value_info("code", TensorProto.INT64, shape),
            helper.make_tensor_value_info("name", TensorProto.STRING, shape),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return load_engine("onnx", path, EngineOptions())


def column(items: list[bytes] | list[str]) -> Array:
    array = np.empty((len(items), 1), dtype=object)
    array[:, 0] = items
    return array


@pytest.mark.parametrize(
    "given",
    [
        column([colour.encode() for colour in COLOURS]),
        column(COLOURS),
        np.array([[colour] for colour in COLOURS]),
        np.array([[colour.encode()] for colour in COLOURS]),
    ],
    ids=["bytes", "str", "U", "S"],
)
def test_text_is_text_for_the_model_and_bytes_for_the_wire(tmp_path: Path, given: Array) -> None:
    outputs = encoder(tmp_path / "m.onnx").run({"colour": given})
    assert outputs["code"][:, 0].tolist() == [1, 2, 3, -1, -1]
    assert outputs["name"][:, 0].tolist() == [text.encode() for text in ("rouge", "?", "blåt", "?", "?")]
    assert outputs["name"].dtype == object


def test_what_is_no_text_is_refused_by_its_place(tmp_path: Path) -> None:
    engine = encoder(tmp_path / "m.onnx")
    with pytest.raises(InvalidInput, match=r"inputs\.colour\[1, 0\]: byte 1 is 0xff, which is not UTF-8"):
        engine.run({"colour": column([b"red", b"r\xff"])})
    assert engine.run({"colour": column([b"red"])}, ["code"])["code"].tolist() == [[1]]


@pytest.mark.parametrize("item", [5, None, [1]], ids=repr)
def test_a_number_is_not_taken_for_text(tmp_path: Path, item: object) -> None:
    given = column([b"red", b"red"])
    given[1, 0] = item
    with pytest.raises(InvalidInput, match=r"inputs\.colour\[1, 0\].*expected text or bytes"):
        encoder(tmp_path / "m.onnx").run({"colour": given})
