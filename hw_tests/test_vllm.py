"""vLLM on a GPU behind a core's generator: transformers' answers first, then what batching is worth, as figures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import PenstockError
from penstock.generation import tokenizer
from penstock.generation.values import GenerationRequest
from penstock.hosting.generation import text_model
from penstock.hosting.generation.managed.generator import ManagedGenerator
from penstock.hosting.generation.managed.settings import VllmSettings
from penstock.hosting.generation.managed.vllm import ManagedServers
from penstock.toolchain import gpu, locations
from penstock.toolchain.definitions import find

CLEAR = 0.5  # of logits in bfloat16
PROMPT_TOKENS, NEW_TOKENS = 256, 128
STREAMS = (1, 8, 32, 128)


@pytest.fixture(scope="module")
def interpreter() -> Path:
    """A Python with vLLM for CUDA, which ``PENSTOCK_TOOLCHAIN_VLLM`` names: the toolchain brings one for processors."""
    if (reason := gpu.driver_problem()) is not None:
        pytest.skip(reason)
    try:
        found = locations.look(find("vllm"))
    except PenstockError as error:
        pytest.skip(error.message)
    if found.state != "explicit" or found.python is None:
        pytest.skip("PENSTOCK_TOOLCHAIN_VLLM names no interpreter that has vLLM for CUDA")
    return found.python


@pytest.fixture(scope="module")
def model(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama")
    subprocess.run([interpreter, Path(__file__).with_name("make_random_llama.py"), out], check=True)
    return out


def generator(model: Path, root: Path, interpreter: Path) -> ManagedGenerator:
    settings = VllmSettings(directory=str(model), dtype="bfloat16", context_tokens=2048, max_sequences=max(STREAMS))
    servers = ManagedServers(
        settings={"llama": settings}, interpreter=lambda: interpreter, directory=root, environment=os.environ
    )
    return servers.generator("llama", tokenizer.load(text_model.read_files(model)).facts)


@contextlib.contextmanager
def utilisation() -> Iterator[list[int]]:
    """What nvidia-smi says of the first GPU, five times a second."""
    seen: list[int] = []
    if shutil.which("nvidia-smi") is None:
        yield seen
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200", "--id=0"]
    process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    try:
        yield seen
    finally:
        process.terminate()
        told, _ = process.communicate()
        seen += [int(line) for line in told.split() if line.isdigit()]


async def timed(made: ManagedGenerator, ids: tuple[int, ...], new: int) -> tuple[list[int], float]:
    """The tokens of an answer, and how long the first one took."""
    request = GenerationRequest(id="a", prompt_ids=ids, max_new_tokens=new, ignore_end=True)
    began, first_s, tokens = time.perf_counter(), 0.0, []
    async for event in made.generate(request, deadline=asyncio.get_running_loop().time() + 600.0):
        first_s = first_s or time.perf_counter() - began
        tokens.append(event.token)
    return tokens, first_s


@pytest.mark.timeout(3600)
async def test_a_sharded_model_answers_as_transformers_does_and_batching_pays(
    model: Path, interpreter: Path, tmp_path: Path
) -> None:
    made = generator(model, tmp_path, interpreter)
    began = time.perf_counter()
    await made.start()
    print(f"\nfrom start to first token: {time.perf_counter() - began:.1f} s")
    try:
        for row in json.loads((model / "references.json").read_text()):
            clear = next((at for at, margin in enumerate(row["margins"]) if margin < CLEAR), len(row["margins"]))
            tokens, _ = await timed(made, tuple(row["ids"]), max(clear, 1))
            assert tokens[:clear] == row["new"][:clear]
        print("streams   tokens/s   first token p50, ms   GPU busy, %")
        for streams in STREAMS:
            prompts = [tuple((stream * 31 + at) % 256 for at in range(PROMPT_TOKENS)) for stream in range(streams)]
            began = time.perf_counter()
            with utilisation() as busy:
                answers = await asyncio.gather(*(timed(made, prompt, NEW_TOKENS) for prompt in prompts))
            took_s = time.perf_counter() - began
            assert [len(tokens) for tokens, _ in answers] == [NEW_TOKENS] * streams
            first_ms = statistics.median(first_s for _, first_s in answers) * 1000
            percent = f"{statistics.mean(busy):.0f}" if busy else "not known"
            print(f"{streams:7}   {streams * NEW_TOKENS / took_s:8.0f}   {first_ms:19.0f}   {percent:>11}")
    finally:
        await made.close(0.0)
