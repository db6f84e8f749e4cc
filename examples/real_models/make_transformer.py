"""A classifier of transformers by its configuration, with random weights, as a directory. Runs in toolchain
``optimum`` (``penstock.toolchain.call``); never imported here.

The job: ``out``, ``config`` (of a BERT), and ``rows``, an npz of its inputs, on which the last layer is balanced:
random weights would answer the same to every row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from protocol import serve


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Write the directory with ``save_pretrained``."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**job["config"])).eval()
    with np.load(job["rows"]) as rows, torch.no_grad():
        logits = model(**{name: torch.from_numpy(rows[name]) for name in rows.files}).logits
        spread = logits.std(0) + 1e-6
        model.classifier.weight /= spread[:, None]
        model.classifier.bias.copy_((model.classifier.bias - logits.mean(0)) / spread)
    model.save_pretrained(Path(job["out"]))
    return {}


if __name__ == "__main__":
    serve(make)
