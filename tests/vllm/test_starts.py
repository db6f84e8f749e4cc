"""Other ways to start a real vLLM: in stages, and with ranks that cannot share the heads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.errors import Unavailable
from tests.vllm.bytes_model import PATIENCE_S, Clock, generator
from tests.vllm.test_ranks import check_answers

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)
BIND = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if (os.cpu_count() or 1) > 1 else {}


async def test_two_stages_compiled_answer_as_transformers_does(models: Path, interpreter: Path, tmp_path: Path) -> None:
    staged = generator(
        models, tmp_path, interpreter, pipeline_parallel=2, enforce_eager=False, environment=BIND, hang_s=300.0
    )
    with Clock("two pipeline stages, compiled, from start to first token"):
        await staged.start()
    try:
        await check_answers(staged, models)
    finally:
        await staged.close(0.0)


async def test_ranks_that_cannot_share_the_heads_are_refused_in_words(
    models: Path, interpreter: Path, tmp_path: Path
) -> None:
    odd = generator(models, tmp_path, interpreter, model="three-heads", tensor_parallel=2, environment=BIND)
    with Clock("until it is refused"), pytest.raises(Unavailable, match="divisible") as caught:
        await odd.start()
    print(f"  {caught.value.message}")
