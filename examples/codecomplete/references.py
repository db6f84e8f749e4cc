"""Toolchain program: what transformers and onnxruntime-genai answer to prompts, greedily, one prompt at a time.

Job: ``trained`` (Hugging Face directories by name), ``built`` (directories for onnxruntime-genai by name), ``texts``,
``tokens`` (how many of each text make a prompt), ``new_tokens``. The result has for each model, by ``transformers`` and
by ``genai``, one object a prompt: ``ids``, ``new`` ids, their ``logprobs``, and their ``margins``, the difference
between the two largest logits at each place: where it is tiny, another order of sums may choose another token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime_genai as og
import torch
from protocol import progress, serve
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(job["trained"].values())))
    prompts = [
        tokenizer(text, add_special_tokens=False)["input_ids"][:count]
        for text, count in zip(job["texts"], job["tokens"], strict=True)
    ]
    found: dict[str, Any] = {"transformers": {}, "genai": {}}
    for name, directory in job["trained"].items():
        progress(0.1, name)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        found["transformers"][name] = [_by_transformers(model, ids, job["new_tokens"]) for ids in prompts]
    for name, directory in job["built"].items():
        progress(0.5, name)
        model = og.Model(str(directory))
        found["genai"][name] = [_by_genai(model, ids, job["new_tokens"]) for ids in prompts]
    return found


def _by_transformers(model: Any, ids: list[int], count: int) -> dict[str, Any]:
    """Compute every place from the beginning, without a cache that could go wrong in the same way."""
    new: list[int] = []
    rows = []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].double().numpy()
            new.append(int(logits.argmax()))
            rows.append(logits)
    return _said(ids, new, rows)


def _by_genai(model: Any, ids: list[int], count: int) -> dict[str, Any]:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + count, do_sample=False, min_length=len(ids) + count)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(ids, np.int32))
    new: list[int] = []
    rows = []
    for _ in range(count):
        logits = np.array(generator.get_logits(), np.float64).reshape(-1)
        new.append(int(logits.argmax()))
        rows.append(logits)
        if len(new) < count:
            generator.append_tokens(np.array(new[-1:], np.int32))
    return _said(ids, new, rows)


def _said(ids: list[int], new: list[int], rows: list[Any]) -> dict[str, Any]:
    logprobs, margins = [], []
    for token, logits in zip(new, rows, strict=True):
        first, second = np.sort(logits)[-1], np.sort(logits)[-2]
        logprobs.append(round(float(logits[token] - first - np.log(np.exp(logits - first).sum())), 4))
        margins.append(round(float(first - second), 4))
    return {"ids": ids, "new": new, "logprobs": logprobs, "margins": margins}


if __name__ == "__main__":
    serve(answer)
