"""``python -m benchmarks.generation``: language models in slots beside onnxruntime-genai, on one file in one process.

What is compared, in rounds in which each has its turn, with the same threads and without spinning for all:

- ``slots``: our engine through its port, log-probabilities and all;
- ``in-turns``: onnxruntime-genai, a generator for each stream, which take turns: how it is used on a CPU;
- ``batch``: onnxruntime-genai, static batches of as many prompts as there are streams: padded to the longest, and each
  goes on until its longest answer has its end.

Loads: ``equal`` requests that begin together, the one case that suits a static batch; and ``mixed``: four times as many
requests as streams, prompts of 8 to 96 tokens, answers of 8 to 64, where each begins as soon as there is room.

The model is a Llama of 110 million parameters with random weights in 4 bits, made on first use (toolchain
``transformers5``, some minutes) and kept; ``--model`` takes another directory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime_genai as og

from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.targets import GENAI_CPU, resolve
from examples.tiny_llama import data
from examples.tiny_llama.run import TRAIN
from penstock import toolchain
from penstock.cli.output import format_table
from penstock.generation.values import GenerationRequest
from penstock.runtime.generation import GenerationOptions, load

CACHE = Path(__file__).resolve().parent.parent / "out" / "bench" / "generation"
TOOLCHAIN = "transformers5"
SHAPE = {"hidden": 576, "layers": 30, "kv_heads": 6, "vocabulary": 8192, "context": 2048}
PAD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request; its answer goes on to its limit."""

    prompt: tuple[int, ...]
    new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Tokens of answers that were asked for, a second, prompts included: of the clock, and of this process's CPU time,
    which other work on the machine disturbs less.
    """

    tokens_per_s: float
    tokens_per_cpu_s: float


Engine = Callable[[Sequence[Asked], int], None]
"""Answers requests, at most so many at a time."""


def equal(streams: int, vocabulary: int, seed: int) -> Sequence[Asked]:
    """Return as many equal requests as there are streams."""
    prompts = np.random.default_rng(seed).integers(2, vocabulary, (streams, 32)).tolist()
    return [Asked(prompt=tuple(prompt), new_tokens=32) for prompt in prompts]


def mixed(streams: int, vocabulary: int, seed: int) -> Sequence[Asked]:
    """Return four times as many requests as there are streams, of different lengths."""
    source = np.random.default_rng(seed)
    return [
        Asked(
            prompt=tuple(source.integers(2, vocabulary, source.integers(8, 97)).tolist()),
            new_tokens=int(source.integers(8, 65)),
        )
        for _ in range(4 * streams)
    ]


LOADS: Mapping[str, Callable[[int, int, int], Sequence[Asked]]] = {"equal": equal, "mixed": mixed}


def slots(directory: Path, threads: int, most: int) -> Engine:
    """Return our engine; ``most`` streams have a slot each."""
    engine = load("onnxruntime", directory, GenerationOptions(threads=threads, slots=most, context_tokens=512))

    def answer(requests: Sequence[Asked], streams: int) -> None:
        waiting = list(enumerate(requests))[::-1]
        while waiting or engine.running:
            while waiting and engine.running < streams:
                number, asked = waiting.pop()
                engine.admit(
                    GenerationRequest(
                        id=str(number), prompt_ids=asked.prompt, max_new_tokens=asked.new_tokens, ignore_end=True
                    )
                )
            engine.step()

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
    generator.append_tokens(np.array([[*[PAD] * (length - len(ids)), *ids] for ids in prompts], np.int32))
    generator.generate_next_token()
    return generator


def in_turns(directory: Path, threads: int, most: int) -> Engine:
    """Return a generator for each stream."""
    del most
    model = _genai_model(directory, threads)

    def answer(requests: Sequence[Asked], streams: int) -> None:
        waiting = list(requests)[::-1]
        running: list[tuple[Any, int]] = []
        while waiting or running:
            while waiting and len(running) < streams:
                asked = waiting.pop()
                running.append((_generator(model, [asked.prompt], asked.new_tokens), asked.new_tokens - 1))
            for generator, _ in running:
                generator.generate_next_token()
            running = [(generator, left - 1) for generator, left in running if left > 1]

    return answer


def batch(directory: Path, threads: int, most: int) -> Engine:
    """Return static batches."""
    del most
    model = _genai_model(directory, threads)

    def answer(requests: Sequence[Asked], streams: int) -> None:
        for begin in range(0, len(requests), streams):
            group = requests[begin : begin + streams]
            longest = max(asked.new_tokens for asked in group)
            generator = _generator(model, [asked.prompt for asked in group], longest)
            for _ in range(longest - 1):
                generator.generate_next_token()

    return answer


ENGINES: Mapping[str, Callable[[Path, int, int], Engine]] = {"slots": slots, "in-turns": in_turns, "batch": batch}
Key = tuple[str, int, str]
"""Load, streams and engine."""


def model(directory: Path) -> Path:
    """Return the built model, making it on first use."""
    built = directory / "int4"
    if (built / genai.CONFIG_FILE).is_file():
        return built
    built.mkdir(parents=True, exist_ok=True)
    texts = data.write_training(directory / "training.jsonl", 1_000_000)
    job = {"texts": texts, "out": directory / "source", "tokenizer": None, "steps": 1, "batch": 1, "sequence": 16}
    toolchain.call(TOOLCHAIN, TRAIN, job | SHAPE | {"seed": 0})
    options = {"precision": "int4", "toolchain": TOOLCHAIN}
    genai.run(PassJob(source=directory / "source", out=built, target=resolve(GENAI_CPU), options=options))
    return built


class _Options(argparse.Namespace):
    quick: bool
    rounds: int
    streams: Sequence[int]
    loads: Sequence[str]
    threads: int
    model: Path | None


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 1 and 4 streams, for a first look")
    parser.add_argument("--rounds", type=int, help="in which every engine has its turn at every load (default 3)")
    parser.add_argument("--streams", nargs="+", type=int, help="(default 1 4 8 16)")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=tuple(LOADS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path, help="a directory that onnxruntime-genai's builder wrote")
    options = parser.parse_args(namespace=_Options())
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.streams = options.streams or ((1, 4) if options.quick else (1, 4, 8, 16))
    return options


def main() -> int:
    options = _options()
    directory = options.model or model(CACHE)
    vocabulary = json.loads((directory / genai.CONFIG_FILE).read_text(encoding="utf-8"))["model"]["vocab_size"]
    engines = {name: make(directory, options.threads, max(options.streams)) for name, make in ENGINES.items()}
    found: dict[Key, list[Timed]] = {}
    for number in range(options.rounds):
        for load_name, streams, name in itertools.product(options.loads, options.streams, engines):
            print(f"round {number + 1}/{options.rounds}: {load_name}, {streams} streams, {name}", file=sys.stderr)
            timed = _timed(engines[name], LOADS[load_name](streams, vocabulary, number), streams)
            found.setdefault((load_name, streams, name), []).append(timed)
    print(f"{directory}; {options.threads} threads, load of the machine {os.getloadavg()[0]:.1f}; tokens/s (best)\n")
    print(table(found))
    return 0


def _timed(engine: Engine, requests: Sequence[Asked], streams: int) -> Timed:
    begun, begun_cpu = time.perf_counter(), time.process_time()
    engine(requests, streams)
    took, took_cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    tokens = sum(asked.new_tokens for asked in requests)
    return Timed(tokens_per_s=tokens / took, tokens_per_cpu_s=tokens / took_cpu)


def table(found: Mapping[Key, Sequence[Timed]]) -> str:
    """Format medians, and the ratios of slots to the better of the others, which are taken within each round."""
    lines = []
    for load_name, streams in dict.fromkeys((load_name, streams) for load_name, streams, _ in found):
        rounds = [found[load_name, streams, name] for name in ENGINES]
        clock = [[timed.tokens_per_s for timed in each] for each in rounds]
        cpu = [[timed.tokens_per_cpu_s for timed in each] for each in rounds]
        speeds = [f"{median(each):.0f} ({max(each):.0f})" for each in clock]
        lines.append([load_name, str(streams), *speeds, _ratio(clock), _ratio(cpu)])
    head = ["load", "streams", *ENGINES, "slots / better", "in CPU time"]
    return format_table(head, lines)


def _ratio(speeds: Sequence[Sequence[float]]) -> str:
    ratios = sorted(ours / max(others) for ours, *others in zip(*speeds, strict=True))
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
