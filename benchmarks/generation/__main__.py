"""``python -m benchmarks.generation``: run every part, print the tables, and keep the figures.

``--model`` takes another directory that onnxruntime-genai's builder wrote; ctranslate2 then has no such model, and is
left out. What cannot be installed is left out too, and the report says so.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import NotInstalled, interpreter
from benchmarks.generation import load_generator, models, results, serving, tables, throughput
from benchmarks.generation.load_generator import NotDriven
from benchmarks.generation.peers import AIPERF, CTRANSLATE2, Tool
from benchmarks.generation.results import Results, Rounds

CACHE = Path(__file__).resolve().parents[2] / "out" / "bench"
PARTS = ("throughput", "serving", "turns", "load")


class _Options(argparse.Namespace):
    quick: bool
    rounds: int
    streams: Sequence[int]
    loads: Sequence[str]
    parts: Sequence[str]
    threads: int
    model: Path | None
    prompts: int
    turn_chars: int
    is_saved: bool
    without_peers: bool


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 1 and 4 streams, a first look; not saved")
    parser.add_argument("--rounds", type=int, help="in which every engine has its turn at every load (default 3)")
    parser.add_argument("--streams", nargs="+", type=int, help="(default 1 4 8 16)")
    parser.add_argument("--loads", nargs="+", choices=throughput.LOADS, default=tuple(throughput.LOADS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompts", type=int, help="that each way to a core is asked (default 24)")
    parser.add_argument("--turn-chars", type=int, default=serving.TURN_CHARS, help="of a conversation's first turn")
    parser.add_argument("--model", type=Path, help="a directory that onnxruntime-genai's builder wrote; not saved")
    parser.add_argument("--no-save", dest="is_saved", action="store_false")
    parser.add_argument("--without-peers", action="store_true", help="nothing that would have to be installed")
    options = parser.parse_args(namespace=_Options())
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.streams = options.streams or ((1, 4) if options.quick else (1, 4, 8, 16))
    options.prompts = options.prompts or (6 if options.quick else 24)
    options.is_saved = options.is_saved and not options.quick and options.model is None
    return options


def main() -> int:
    options = _options()
    before = os.getloadavg()[0]
    model = options.model or models.built(CACHE / "generation")
    left_out: list[str] = []
    tools = {} if options.without_peers else _installed(options, left_out)
    measured: dict[str, Any] = {}
    if "throughput" in options.parts:
        measured["throughput"] = _throughput(options, model, tools, left_out)
    if set(options.parts) - {"throughput"}:
        measured |= _served(options, model, tools, left_out)
    told = {"rounds": options.rounds, "threads": options.threads, "streams": options.streams, "parts": options.parts}
    found = Results(
        **results.described({name: tool.version for name, (tool, _) in tools.items()}, told),
        load_average=(before, os.getloadavg()[0]),
        left_out=left_out,
        **measured,
    )
    print(tables.written(found))
    if options.is_saved:
        print(f"\nsaved: {results.save(found)}", file=sys.stderr)
    return 0


def _installed(options: _Options, left_out: list[str]) -> dict[str, tuple[Tool, Path]]:
    """Return the tools that this run needs, each with its interpreter."""
    needed = [tool for tool, part in ((CTRANSLATE2, "throughput"), (AIPERF, "load")) if part in options.parts]
    found: dict[str, tuple[Tool, Path]] = {}
    for tool in needed:
        try:
            python = interpreter(CACHE / "peers" / tool.name, tool.requirements, announce=_say)
        except NotInstalled as error:
            left_out.append(f"{tool.name}: {error}")
            continue
        found[tool.name] = (tool, python)
    return found


def _throughput(
    options: _Options, model: Path, tools: Mapping[str, tuple[Tool, Path]], left_out: list[str]
) -> list[Rounds]:
    vocabulary = models.vocabulary(model)
    with contextlib.ExitStack() as stack:
        engines = {
            name: make(model, options.threads, max(options.streams)) for name, make in throughput.OURS_AND_GENAI.items()
        }
        if CTRANSLATE2.name in tools and options.model is None:
            try:
                converted = models.converted(CACHE / "generation")
                peer = throughput.ctranslate2(tools[CTRANSLATE2.name][1], converted, options.threads)
                engines[throughput.CTRANSLATE2] = stack.enter_context(peer)
            except NotInstalled as error:
                left_out.append(f"{CTRANSLATE2.name}: {error}")
        found: dict[tuple[str, int, str], Rounds] = {}
        for number in range(options.rounds):
            for load_name, streams, name in itertools.product(options.loads, options.streams, engines):
                _say(f"round {number + 1}/{options.rounds}: {load_name}, {streams} streams, {name}")
                requests = throughput.LOADS[load_name](streams, vocabulary, number)
                empty = Rounds(load=load_name, streams=streams, engine=name, rounds=[])
                timed = throughput.timed(engines[name], requests, streams)
                found.setdefault((load_name, streams, name), empty).rounds.append(timed)
    return list(found.values())


def _served(
    options: _Options, model: Path, tools: Mapping[str, tuple[Tool, Path]], left_out: list[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with serving.cores(model, options.threads) as cores:
        if "serving" in options.parts:
            _say(f"through a core: {options.prompts} prompts by each way")
            found["overhead"] = serving.overhead(cores.askers, options.prompts)
        if "turns" in options.parts:
            _say("second turns of conversations")
            count = max(2, options.prompts // 3)
            found["turns"] = serving.second_turns(cores.askers[serving.V1], count, options.turn_chars)
        if "load" in options.parts and AIPERF.name in tools:
            _say("aiperf")
            with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
                try:
                    found["driven"] = load_generator.drive(
                        tools[AIPERF.name][1],
                        cores.endpoint,
                        tokenizer=model,
                        streams=4,
                        requests=2 * options.prompts,
                        scratch=Path(scratch),
                    )
                except NotDriven as error:
                    left_out.append(str(error))
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
