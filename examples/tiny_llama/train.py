"""Toolchain program: train a byte-level BPE tokenizer and a small Llama on some texts; saves a Hugging Face directory.

Job: ``texts`` (a .jsonl file of strings), ``out``, ``tokenizer`` (a directory to take it from, or null to train one),
``vocabulary``, ``hidden``, ``layers``, ``context``, ``steps``, ``batch``, ``sequence``, ``seed``, and ``kv_heads``
where heads share keys and values. The same job on the same machine gives the same model.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from protocol import progress, serve
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_HEAD = 32
_ONE_THREAD = 128  # products this narrow gain little from a second thread, and lose much on a busy machine
_BEGIN, _END = "<s>", "</s>"
_RATE_BY_WIDTH, _WARMUP = 0.25, 20  # wider models want smaller steps


def train(job: dict[str, Any]) -> dict[str, Any]:
    with open(job["texts"], encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    tokenizer = _tokenizer(texts, job)
    progress(0.05, "encoding")
    data = torch.tensor(
        np.concatenate([tokenizer(text + _END, add_special_tokens=False)["input_ids"] for text in texts])
    )
    if job["hidden"] <= _ONE_THREAD:
        torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    model = LlamaForCausalLM(_config(job, len(tokenizer)))
    loss = _fit(model, data, job)
    model.save_pretrained(job["out"])
    tokenizer.save_pretrained(job["out"])
    return {"loss": loss, "tokens": len(data), "parameters": sum(p.numel() for p in model.parameters())}


def _tokenizer(texts: list[str], job: dict[str, Any]) -> Any:
    if job["tokenizer"]:
        return PreTrainedTokenizerFast.from_pretrained(job["tokenizer"])
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=job["vocabulary"], special_tokens=[_BEGIN, _END], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=_BEGIN, eos_token=_END)


def _config(job: dict[str, Any], vocabulary: int) -> LlamaConfig:
    hidden = job["hidden"]
    heads = hidden // _HEAD
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // _HEAD * _HEAD,
        num_hidden_layers=job["layers"], num_attention_heads=heads, num_key_value_heads=job.get("kv_heads", heads),
        max_position_embeddings=job["context"], tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def _fit(model: Any, data: Any, job: dict[str, Any]) -> float:
    """Mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01)
    source, steps, length = np.random.default_rng(job["seed"]), job["steps"], job["sequence"]
    peak, losses = _RATE_BY_WIDTH / job["hidden"], []
    for step in range(steps):
        rate = min(1.0, (step + 1) / _WARMUP) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        batch = torch.stack([data[at : at + length] for at in source.integers(0, len(data) - length, job["batch"])])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        progress(0.1 + 0.9 * (step + 1) / steps, f"step {step + 1} of {steps}, loss {losses[-1]:.3f}")
    return float(np.mean(losses[-max(1, steps // 10) :]))


if __name__ == "__main__":
    serve(train)
