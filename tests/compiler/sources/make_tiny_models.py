"""Tiny Hugging Face models with random weights, as directories. Runs in toolchain ``optimum``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from protocol import serve

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LABELS = {0: "calm", 1: "glad", 2: "sad"}
POOLING = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Write every directory below ``job["out"]``."""
    out = Path(job["out"])
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZE, num_labels=3, id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    transformers.BertForSequenceClassification(config).save_pretrained(out / "classifier")
    (out / "classifier" / "tokenizer.json").write_text("{}")
    sentences = transformers.DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    transformers.DistilBertModel(sentences).save_pretrained(out / "sentences")
    (out / "sentences" / "modules.json").write_text(json.dumps(POOLING))
    (out / "sentences" / "1_Pooling").mkdir()
    (out / "sentences" / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )
    images = {name: value for name, value in SIZE.items() if name != "vocab_size"}
    vit = transformers.ViTConfig(**images, image_size=16, patch_size=8, num_labels=5)
    transformers.ViTForImageClassification(vit).save_pretrained(out / "images")
    llama = transformers.LlamaConfig(**SIZE, num_key_value_heads=2)
    transformers.LlamaForCausalLM(llama).save_pretrained(out / "language")
    return {}


if __name__ == "__main__":
    serve(make)
