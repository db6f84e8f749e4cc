"""A torch or Hugging Face teacher's answers to some rows; runs in toolchain ``torch`` or ``optimum``."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from distill_models import Scorer, load
from protocol import InputError, progress, serve, short


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Write logits [rows, classes] float32 into ``job["out"]``."""
    inputs = {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in job["inputs"].items()}
    rows = len(next(iter(inputs.values())))
    progress(0.0, "loading the teacher")
    scorer = Scorer(load(job["model"], job["base"]), list(inputs)).eval()
    parts = []
    with torch.no_grad():
        for start in range(0, rows, job["batch"]):
            batch = [torch.from_numpy(np.array(array[start : start + job["batch"]])) for array in inputs.values()]
            try:
                parts.append(scorer(*batch).float().numpy())
            except InputError:
                raise
            except Exception as error:
                sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in zip(inputs, batch, strict=True))
                raise InputError(f"the teacher cannot answer rows of sizes {sizes}: {short(error)}") from error
            progress(min(1.0, (start + job["batch"]) / rows), "asking the teacher")
    answers = np.concatenate(parts)
    np.save(job["out"], answers)
    return {"shape": list(answers.shape)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(answer)
