"""What a directory says about its texts: sentence-transformers' files first, then the tokenizer's and the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compiler.sources import sentences
from penstock.errors import InvalidInput

BERT = {"model_type": "bert", "max_position_embeddings": 512}
ROBERTA = {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}
MODULES = [{"path": "0_Transformer", "type": "st.Transformer"}, {"path": "1_Pooling", "type": "st.Pooling"}]


def written(folder: Path, files: dict[str, Any]) -> Path:
    for name, document in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, None),
        ({"config.json": BERT}, {"max_tokens": 512}),
        ({"config.json": BERT, "tokenizer_config.json": {"model_max_length": 128}}, {"max_tokens": 128}),
        ({"config.json": BERT, "tokenizer_config.json": {"model_max_length": 1e30}}, {"max_tokens": 512}),
        ({"config.json": ROBERTA}, {"max_tokens": 512}),
        (
            {"config.json": BERT, "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True}},
            {"max_tokens": 256, "is_lower_case": True},
        ),
        (
            {"modules.json": MODULES, "0_Transformer/sentence_bert_config.json": {"max_seq_length": 64}},
            {"max_tokens": 64},
        ),
        ({"config.json": BERT, "sentence_bert_config.json": {"max_seq_length": None}}, {"max_tokens": 512}),
        (
            {
                "config.json": BERT,
                "config_sentence_transformers.json": {
                    "prompts": {"query": "query: ", "passage": "passage: "},
                    "default_prompt_name": "query",
                },
            },
            {"max_tokens": 512, "prefix": "query: "},
        ),
        ({"config_sentence_transformers.json": {"prompts": {"query": "q"}, "default_prompt_name": None}}, None),
    ],
)
def test_the_length_and_the_prefix_of_texts(tmp_path: Path, files: dict[str, Any], said: dict[str, Any] | None) -> None:
    assert sentences.facts(written(tmp_path, files)) == ({} if said is None else {"texts": said})


def test_a_default_prompt_that_is_not_there(tmp_path: Path) -> None:
    prompts = {"prompts": {}, "default_prompt_name": "query"}
    with pytest.raises(InvalidInput, match="no prompt 'query'"):
        sentences.facts(written(tmp_path, {"config_sentence_transformers.json": prompts}))


def test_a_path_that_leaves_the_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="leaves the directory"):
        sentences.facts(written(tmp_path, {"modules.json": [{"path": "../x", "type": "st.Transformer"}]}))
