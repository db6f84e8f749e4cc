"""A tiny sentence encoder as a directory and as an artifact: embeddings, one attention, mean pooling to unit length.

``expected`` computes the same without padding by numpy, one text at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from compiler.sources import pooling
from compiler.sources.pooling import Pooling
from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec
from penstock.policy.text_rows import EmbeddingSpec
from penstock.wire.tensors import Array, TensorSpec
from tests.factories import onnx_model, variant_spec

NAME = "sentences"
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]",
    "the", "dog", "sleeps", "on", "a", "mat", "river", "runs", "by", "night", "é", "漢",
]  # fmt: skip
SIZE, MAX_TOKENS = 8, 64
PAD, UNKNOWN, FIRST, LAST = range(4)

_DRAWN = np.random.default_rng(4)
TABLE = _DRAWN.normal(size=(len(WORDS), SIZE)).astype(np.float32)
PLACES = _DRAWN.normal(size=(MAX_TOKENS, SIZE)).astype(np.float32)


def ids_of(text: str) -> list[int]:
    words = [WORDS.index(word) if word in WORDS else UNKNOWN for word in text.split()]
    return [FIRST, *words, LAST]


def expected(text: str | Sequence[int]) -> Array:
    """The vector of one text, without any padding."""
    ids = ids_of(text) if isinstance(text, str) else list(text)
    states = TABLE[ids] + PLACES[: len(ids)]
    weights = np.exp(states @ states.T)
    pooled = (weights / weights.sum(axis=1, keepdims=True) @ states).mean(axis=0)
    found: Array = pooled / np.linalg.norm(pooled)
    return found


def tokenizer_json() -> str:
    """The document of a tokenizer that splits at spaces, and says of itself that it cuts and pads to 12 tokens."""
    special = [
        {"id": place, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for place, word in enumerate(WORDS[:4])
    ]  # fmt: skip
    token = {"[CLS]": FIRST, "[SEP]": LAST}
    around = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]  # fmt: skip
    return json.dumps({
        "version": "1.0",
        "truncation": {"max_length": 12, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": PAD,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": around, "pair": around, "special_tokens": {
            name: {"id": name, "ids": [one], "tokens": [name]} for name, one in token.items()
        }},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: place for place, word in enumerate(WORDS)},
                  "unk_token": "[UNK]"},
    }, ensure_ascii=False)  # fmt: skip


def graph() -> onnx.ModelProto:
    """Return the graph; padding is masked in the attention and in the mean."""
    model = onnx_model(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"]),
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Gather", ["shape", "one"], ["length"]),
            helper.make_node("Slice", ["places", "zero", "length", "zero"], ["where"]),
            helper.make_node("Add", ["words", "where"], ["states"]),
            helper.make_node("Transpose", ["states"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["states", "turned"], ["alike"]),
            helper.make_node("Cast", ["attention_mask"], ["seen"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Sub", ["unit", "seen"], ["unseen"]),
            helper.make_node("Mul", ["unseen", "hidden"], ["away"]),
            helper.make_node("Unsqueeze", ["away", "one"], ["bias"]),
            helper.make_node("Add", ["alike", "bias"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "states"], ["last_hidden_state"]),
        ],
        {
            "table": TABLE,
            "places": PLACES,
            "zero": np.array([0]),
            "one": np.array([1]),
            "unit": np.array(1, np.float32),
            "hidden": np.array(-1e9, np.float32),
        },
        inputs={"input_ids": ["batch", "tokens"], "attention_mask": ["batch", "tokens"]},
        outputs={"last_hidden_state": ["batch", "tokens", SIZE]},
        ints=("input_ids", "attention_mask"),
    )
    return pooling.append(model, pooled=Pooling(mode="mean", normalize=True))


def directory(path: Path) -> Path:
    """Write it as a directory that a recipe can name: the graph with its tokenizer and sentence-transformers' files."""
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(), str(path / "model.onnx"))
    (path / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS, "do_lower_case": True}))
    return path


def spec(role: Role = "edge", **changes: Any) -> VariantSpec:
    rows = {"datatype": "INT64", "shape": (-1, -1)}
    values: dict[str, Any] = {
        "model": NAME,
        "inputs": tuple(TensorSpec(name=name, **rows) for name in ("input_ids", "attention_mask")),  # type: ignore[arg-type]
        "outputs": (TensorSpec(name="sentence_embedding", datatype="FP32", shape=(-1, SIZE)),),
        "score_output": "sentence_embedding",
        "max_batch": 16,
        "embedding": EmbeddingSpec(max_tokens=MAX_TOKENS),
    }
    return variant_spec(role, **values | changes)


def layout(root: Path, *, tag: str = "v1", **changes: Any) -> Layout:
    """An artifact whose edge and cloud variants are the encoder."""
    source = directory(root / f"encoder-{tag}")
    ids = ids_of("the dog sleeps")
    vectors = golden.encode(
        Golden(
            inputs={"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)},
            outputs={"sentence_embedding": expected("the dog sleeps")[None].astype(np.float32)},
        )
    )
    drafts = [
        VariantDraft(
            spec=spec(role, **changes),
            weights=source / "model.onnx",
            golden=vectors,
            files={"tokenizer.json": source / "tokenizer.json"},
        )
        for role in ("edge", "cloud")
    ]
    made = Layout.create(root / f"layout-{tag}")
    made.pack(drafts, tag=tag)
    return made
