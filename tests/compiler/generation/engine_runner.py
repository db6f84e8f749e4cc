"""Toolchain program for tests: what a version of onnxruntime-genai offers and does, for the facts that we rely on.

Job: ``model`` (a built directory). The part that kills the process in some versions runs in a child.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime_genai as og
from protocol import serve

_DECODE_NOTHING = """
import sys, numpy as np, onnxruntime_genai as og
og.Tokenizer(og.Model(sys.argv[1])).decode(np.array([], dtype=np.int32))
"""


def facts(job: dict[str, Any]) -> dict[str, Any]:
    model = og.Model(job["model"])
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=32, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.arange(5, 15, dtype=np.int32))
    every, last = generator.get_output("logits"), generator.get_logits()
    child = subprocess.run([sys.executable, "-c", _DECODE_NOTHING, job["model"]], capture_output=True, check=False)
    return {
        "engine": [name for name in ("add_request", "step", "create_request", "run") if hasattr(og.Engine, name)],
        "generator": [name for name in ("append_tokens", "generate_next_token", "get_logits", "rewind_to", "get_output")
                      if hasattr(og.Generator, name)],
        "logits": list(every.shape),
        "last_is_last": bool((every[0, -1] == np.asarray(last).reshape(-1)).all()),
        "decodes_nothing": child.returncode == 0,
    }  # fmt: skip


if __name__ == "__main__":
    serve(facts)
