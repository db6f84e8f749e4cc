"""What a variant declares of its texts, from its source's files, the recipe and its own inputs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from compiler.pipeline import embedding
from compiler.pipeline.cached_steps import Model
from penstock.artifact.manifests import VariantSpec
from penstock.policy.text_rows import EmbeddingSpec
from penstock.wire.tensors import TensorSpec
from tests import encoder

PADDING = {"pad_id": 7, "pad_type_id": 1, "direction": "Left"}
DONE = {"tokenizer": {"max_length": 12, "padding": "max_length"}}


def declared(folder: Path, *, task: str = "embedding", text: str = "", facts: Any = None, document: Any = None,
             **changes: Any) -> EmbeddingSpec | None:  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document or {}))
    said = {"texts": {"max_tokens": 64} if facts is None else facts}
    model = Model(path=folder / "model.onnx", content="", files=(folder / "tokenizer.json",), facts=said)
    recipe: Any = SimpleNamespace(model=SimpleNamespace(task=task), data=SimpleNamespace(text=text))
    given: VariantSpec = msgspec.structs.replace(encoder.spec(**changes), embedding=msgspec.UNSET)
    return embedding.with_texts(given, recipe, model).embedding or None


def test_the_padding_is_what_the_tokenizers_file_says(tmp_path: Path) -> None:
    assert declared(tmp_path, document={"padding": PADDING}) == EmbeddingSpec(
        max_tokens=64, pad_id=7, pad_type_id=1, pads_left=True
    )
    by_name = {"added_tokens": [{"id": 3, "content": "<s>"}, {"id": 1, "content": "<pad>"}]}
    assert declared(tmp_path, document=by_name) == EmbeddingSpec(max_tokens=64, pad_id=1)
    assert declared(tmp_path) == EmbeddingSpec(max_tokens=64)


def test_how_it_was_measured_and_trained_is_said_too(tmp_path: Path) -> None:
    facts = {"max_tokens": 64, "prefix": "query: ", "is_lower_case": True}
    found = declared(tmp_path, text="text", facts=facts, preprocessing=DONE)
    assert found == EmbeddingSpec(
        max_tokens=64, prefix="query: ", is_lower_case=True, measured_tokens=12, is_padded=True
    )


def test_a_fixed_length_is_the_most(tmp_path: Path) -> None:
    fixed = (TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 32)),)
    found = declared(tmp_path, inputs=fixed)
    assert found is not None
    assert found.max_tokens == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "classification"},
        {"facts": {}},
        {"inputs": (TensorSpec(name="pixels", datatype="FP32", shape=(-1, 3)),)},
        {"outputs": (TensorSpec(name="sentence_embedding", datatype="FP32", shape=(-1, -1, 8)),)},
    ],
)
def test_what_cannot_be_asked_for_vectors_of_texts_declares_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert declared(tmp_path, **changes) is None
