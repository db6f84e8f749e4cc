"""How many tokens a second, and how soon the first one: slots beside what one would take instead.

- ``slots``: our engine through its port, log-probabilities and all;
- ``in-turns``: onnxruntime-genai, a generator for each stream, which take turns: how it is used on a CPU;
- ``batch``: onnxruntime-genai, static batches of as many prompts as there are streams, padded to the longest, each of
  which goes on until its longest answer has its end;
- ``ctranslate2``: its static batches of the same model in 8 bits, in a process of its own.

All have the same number of threads, which do not spin. Loads: ``equal`` requests that begin together, the one case
that suits a static batch; and ``mixed``: more requests than streams, prompts of 8 to 96 tokens, answers of 8 to 64, all
there from the beginning, where each is begun as soon as there is room.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime_genai as og

from benchmarks.generation.peers import PROGRAM
from penstock.generation.values import GenerationRequest
from penstock.runtime.generation import GenerationOptions, load

_PAD = 1
_CONTEXT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request; its answer goes on to its limit."""

    prompt: tuple[int, ...]
    new_tokens: int


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What answering took.

    Attributes:
        first_s: from the beginning to each request's first token.
        cpu_s: of the processor, which other work on the machine disturbs less than the clock.
    """

    first_s: list[float]
    cpu_s: float


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of answers that were asked for, a second, prompts included.

    Attributes:
        first_s: median over the requests, all of which were there from the beginning.
    """

    tokens_per_s: float
    tokens_per_cpu_s: float
    first_s: float


Engine = Callable[[Sequence[Asked], int], Ran]
"""Answers requests, at most so many at a time."""


def equal(streams: int, vocabulary: int, seed: int) -> Sequence[Asked]:
    """Return as many equal requests as there are streams."""
    prompts = np.random.default_rng(seed).integers(2, vocabulary, (streams, 32)).tolist()
    return [Asked(prompt=tuple(prompt), new_tokens=32) for prompt in prompts]


def mixed(streams: int, vocabulary: int, seed: int) -> Sequence[Asked]:
    """Return two requests for each stream, six at least, of different lengths."""
    source = np.random.default_rng(seed)
    return [
        Asked(
            prompt=tuple(source.integers(2, vocabulary, source.integers(8, 97)).tolist()),
            new_tokens=int(source.integers(8, 65)),
        )
        for _ in range(max(6, 2 * streams))
    ]


LOADS: Mapping[str, Callable[[int, int, int], Sequence[Asked]]] = {"equal": equal, "mixed": mixed}


def timed(engine: Engine, requests: Sequence[Asked], streams: int) -> Timed:
    """Have requests answered."""
    began = time.perf_counter()
    ran = engine(requests, streams)
    took_s = time.perf_counter() - began
    tokens = sum(asked.new_tokens for asked in requests)
    return Timed(
        tokens_per_s=tokens / took_s, tokens_per_cpu_s=tokens / ran.cpu_s, first_s=float(np.median(ran.first_s))
    )


class _Watch:
    """Notes when requests have their first tokens, in this process."""

    def __init__(self, requests: int) -> None:
        self._first_s = [0.0] * requests
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def first(self, request: int) -> None:
        self._first_s[request] = self._first_s[request] or time.perf_counter() - self._began

    def ran(self) -> Ran:
        return Ran(first_s=self._first_s, cpu_s=time.process_time() - self._began_cpu)


def slots(directory: Path, threads: int, most: int) -> Engine:
    """Return our engine; ``most`` streams have a slot each."""
    options = GenerationOptions(threads=threads, slots=most, context_tokens=_CONTEXT_TOKENS)
    engine = load("onnxruntime", directory, options)

    def answer(requests: Sequence[Asked], streams: int) -> Ran:
        watch, waiting = _Watch(len(requests)), list(enumerate(requests))[::-1]
        while waiting or engine.running:
            while waiting and engine.running < streams:
                number, asked = waiting.pop()
                request = GenerationRequest(
                    id=str(number), prompt_ids=asked.prompt, max_new_tokens=asked.new_tokens, ignore_end=True
                )
                engine.admit(request)
            for token in engine.step():
                watch.first(int(token.request))
        return watch.ran()

    return answer


def _genai_model(directory: Path, threads: int) -> Any:
    config = og.Config(str(directory))
    session = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return og.Model(config)


def _generator(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> Any:
    """Return a generator with its prompts computed and the first token of each drawn."""
    length = max(map(len, prompts))
    parameters = og.GeneratorParams(model)
    limit = length + new_tokens
    parameters.set_search_options(do_sample=False, batch_size=len(prompts), max_length=limit, min_length=limit)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([[*[_PAD] * (length - len(ids)), *ids] for ids in prompts], np.int32))
    generator.generate_next_token()
    return generator


def in_turns(directory: Path, threads: int, most: int) -> Engine:
    """Return a generator for each stream."""
    del most
    model = _genai_model(directory, threads)

    def answer(requests: Sequence[Asked], streams: int) -> Ran:
        watch, waiting = _Watch(len(requests)), list(enumerate(requests))[::-1]
        running: list[tuple[Any, int]] = []
        while waiting or running:
            while waiting and len(running) < streams:
                number, asked = waiting.pop()
                running.append((_generator(model, [asked.prompt], asked.new_tokens), asked.new_tokens - 1))
                watch.first(number)
            for generator, _ in running:
                generator.generate_next_token()
            running = [(generator, left - 1) for generator, left in running if left > 1]
        return watch.ran()

    return answer


def batch(directory: Path, threads: int, most: int) -> Engine:
    """Return static batches."""
    del most
    model = _genai_model(directory, threads)

    def answer(requests: Sequence[Asked], streams: int) -> Ran:
        watch = _Watch(len(requests))
        for begin in range(0, len(requests), streams):
            group = requests[begin : begin + streams]
            longest = max(asked.new_tokens for asked in group)
            generator = _generator(model, [asked.prompt for asked in group], longest)
            for number in range(begin, begin + len(group)):
                watch.first(number)
            for _ in range(longest - 1):
                generator.generate_next_token()
        return watch.ran()

    return answer


OURS_AND_GENAI: Mapping[str, Callable[[Path, int, int], Engine]] = {
    "slots": slots,
    "in-turns": in_turns,
    "batch": batch,
}
CTRANSLATE2 = "ctranslate2"
ENGINES = (*OURS_AND_GENAI, CTRANSLATE2)


@contextlib.contextmanager
def ctranslate2(python: Path, directory: Path, threads: int) -> Iterator[Engine]:
    """Yield ctranslate2's static batches, which end with the block.

    Args:
        python: of its environment.
        directory: of the converted model.
    """
    job = json.dumps({"directory": str(directory), "threads": threads})
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}  # threads that do not spin
    with subprocess.Popen(
        [str(python), str(PROGRAM), job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said, heard = process.stdin, process.stdout

        def line() -> str:
            if not (found := heard.readline()):
                raise RuntimeError(f"ctranslate2 ended with {process.wait()}; what it said stands above")
            return found

        def answer(requests: Sequence[Asked], streams: int) -> Ran:
            first_s, cpu_s, began = list[float](), 0.0, time.perf_counter()
            for begin in range(0, len(requests), streams):
                before_s = time.perf_counter() - began
                group = [(asked.prompt, asked.new_tokens) for asked in requests[begin : begin + streams]]
                said.write(json.dumps(group) + "\n")
                said.flush()
                ran = msgspec.json.decode(line(), type=Ran)
                first_s += [before_s + each for each in ran.first_s]
                cpu_s += ran.cpu_s
            return Ran(first_s=first_s, cpu_s=cpu_s)

        line()
        try:
            yield answer
        finally:
            said.close()
