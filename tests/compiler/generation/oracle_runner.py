"""Toolchain program for tests: what transformers and torch say of a Hugging Face directory. Shares no code with ours.

Job: ``model``, ``tokens`` (a list of token ids), ``window``, ``stride``, ``prompts`` (lists of ids), ``new_tokens``.
"""

from __future__ import annotations

from typing import Any

import torch
from protocol import serve
from transformers import AutoModelForCausalLM


@torch.no_grad()
def ask(job: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(job["model"]).eval()
    tokens, window, stride = job["tokens"], job["window"], job["stride"]
    found = []
    for place in range(1, len(tokens)):
        begin = 0
        while place >= begin + window:  # the first window that holds this token
            begin += stride
        logits = model(input_ids=torch.tensor([tokens[begin:place]])).logits[0, -1]
        found.append(torch.log_softmax(logits.double(), dim=0)[tokens[place]].item())
    continued, probabilities = [], []
    for ids in job["prompts"]:
        whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=job["new_tokens"])
        new = whole[0, len(ids) :]
        rows = torch.softmax(model(input_ids=whole).logits[0, len(ids) - 1 : -1].double(), dim=1)
        continued.append(new.tolist())
        probabilities.append(rows[torch.arange(len(new)), new].tolist())
    return {"log_likelihood": found, "continued": continued, "probabilities": probabilities}


if __name__ == "__main__":
    serve(ask)
