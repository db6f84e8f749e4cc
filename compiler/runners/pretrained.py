"""Weights of a Hugging Face directory, read by transformers 4 or 5: in 32 bits, from the directory alone, none of its
code run. What is missing, and what a failure means, is said by the programs that ask."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_DTYPE = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"


def load(kind: Any, directory: str) -> tuple[Any, list[str]]:
    """Load a class of transformers; return the model and the names of weights that the directory lacks."""
    model, info = kind.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, output_loading_info=True, **{_DTYPE: torch.float32}
    )
    return model, sorted(info["missing_keys"])
