"""Language models on a GPU by onnxruntime-genai: the CPU's answers first, then tokens a second and the first token.

Needs the toolchain ``transformers5``, and onnxruntime-genai-cuda in place of onnxruntime-genai. Trains one small model
a little, and builds it for both. The figures are printed (``pytest -s``), and nothing is asserted about them.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.targets import GENAI_CPU, GENAI_CUDA, resolve
from examples.tiny_llama import data
from examples.tiny_llama.run import TRAIN
from penstock import toolchain
from penstock.errors import MissingToolchain
from penstock.generation.values import GenerationRequest
from penstock.runtime.generation import GenerationEngine, GenerationOptions, load

TOOLCHAIN = "transformers5"
SHAPE = {"hidden": 256, "layers": 4, "kv_heads": 4, "vocabulary": 2048, "context": 1024}
FP16_LOGPROB = 0.05
"""How far a token's log-probability in float16 may be from that in float32."""

NEW_TOKENS = 64


@pytest.fixture(scope="module")
def built(genai_cuda: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights for both: float32 on the CPU, float16 on the GPU."""
    root = tmp_path_factory.mktemp("llama")
    job = {"texts": data.write_training(root / "texts.jsonl", 400_000), "out": root / "source", "tokenizer": None}
    found = {"cpu": root / "cpu", "cuda": root / "cuda"}
    try:
        toolchain.call(TOOLCHAIN, TRAIN, job | SHAPE | {"steps": 60, "batch": 8, "sequence": 64, "seed": 0})
        for out, target, precision in zip(found.values(), (GENAI_CPU, GENAI_CUDA), ("fp32", "fp16"), strict=True):
            out.mkdir()
            options = {"precision": precision, "toolchain": TOOLCHAIN}
            genai.run(PassJob(source=root / "source", out=out, target=resolve(target), options=options))
    except MissingToolchain as error:
        pytest.skip(error.message)
    return found


def requests(count: int, tokens: int, new_tokens: int) -> list[GenerationRequest]:
    prompts = np.random.default_rng(count).integers(2, SHAPE["vocabulary"], (count, tokens)).tolist()
    return [
        GenerationRequest(id=str(at), prompt_ids=tuple(ids), max_new_tokens=new_tokens, top_logprobs=2, ignore_end=True)
        for at, ids in enumerate(prompts)
    ]


def answered(engine: GenerationEngine, asked: list[GenerationRequest]) -> tuple[dict[str, list], dict[str, float]]:
    """What each request was answered, and when its first token was there."""
    said: dict[str, list] = {each.id: [] for each in asked}
    first_s: dict[str, float] = {}
    began = time.perf_counter()
    for each in asked:
        engine.admit(each)
    while engine.running:
        for token in engine.step():
            first_s.setdefault(token.request, time.perf_counter() - began)
            said[token.request].append(token)
    return said, first_s


def test_the_gpu_says_what_the_cpu_says(built: dict[str, Path]) -> None:
    """Up to the first place where two tokens are nearly as likely: from there on the texts are others."""
    asked = requests(4, 40, 24)
    answers = {}
    for provider, directory in built.items():
        engine = load("onnxruntime-genai", directory, GenerationOptions(provider=provider, slots=4))
        answers[provider], _ = answered(engine, asked)
        engine.close()
    compared = 0
    for each in asked:
        for one, other in zip(answers["cpu"][each.id], answers["cuda"][each.id], strict=True):
            if one.top[0][1] - one.top[1][1] < 2 * FP16_LOGPROB:
                break
            assert other.token == one.token
            assert other.logprob == pytest.approx(one.logprob, abs=FP16_LOGPROB)
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("streams", [1, 4, 16])
def test_every_stream_is_answered_and_how_fast_is_printed(built: dict[str, Path], streams: int) -> None:
    engine = load(
        "onnxruntime-genai", built["cuda"], GenerationOptions(provider="cuda", slots=streams, chunk_tokens=512)
    )
    answered(engine, requests(1, 128, 4))  # what the first run compiles and allocates
    began = time.perf_counter()
    said, first_s = answered(engine, requests(streams, 128, NEW_TOKENS))
    took_s = time.perf_counter() - began
    engine.close()
    assert [len(tokens) for tokens in said.values()] == [NEW_TOKENS] * streams
    print(
        f"\n{streams} streams: {streams * NEW_TOKENS / took_s:.0f} tokens/s, first token after "
        f"{1e3 * median(first_s.values()):.1f} ms (median)"
    )
