"""Writes what a run found as tables: for people who wait for it, and into benchmarks/README.md, so that no figure there
is typed.

``python -m benchmarks.generation.tables RESULTS.json`` rewrites the section there, which stands between a comment that
names the results and ``<!-- end -->``. A test compares them.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.generation.asking import Answer
from benchmarks.generation.results import GENAI, Ratio, Results, added, by_engine, load, ratio
from benchmarks.generation.serving import PAIRS
from benchmarks.generation.throughput import CTRANSLATE2, ENGINES, Timed

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "benchmarks" / "README.md"
SPEED_GOAL, GOAL_STREAMS = 1.2, (4, 8)
SHARE_GOAL, ADDED_GOAL_S = 0.03, 0.001
_CHARS = 128
_BEGIN = re.compile(r"<!-- python -m benchmarks\.generation\.tables (\S+) -->.*?<!-- end -->", re.S)
_NAMES = {"slots": "slots", "in-turns": "genai, in turns", "batch": "genai, static batch", CTRANSLATE2: "ctranslate2"}


def written(results: Results) -> str:
    """Return every table of a run, in Markdown."""
    parts = [_wrapped(_said(results))]
    if results.throughput:
        parts += [
            "Tokens a second of all streams, median of the rounds:",
            _throughput(results),
            "Seconds to the first token, median over the requests, all of which were there from the beginning:",
            _first(results),
        ]
    if results.overhead:
        parts += ["One stream through a core, median over the prompts:", _overhead(results)]
    if results.turns:
        parts.append(_wrapped(_turns(results)))
    if results.driven is not None:
        parts += [_wrapped(_driven(results)), f"    {results.driven.command}"]
    parts += [f"Left out: {line}." for line in results.left_out]
    return "\n\n".join(parts)


def rewritten(document: str, results: Results | None = None, path: str = "") -> str:
    """Return a document with its section made again: of ``results``, or of what it names.

    Args:
        path: of the results, below the repository.
    """

    def made(section: re.Match[str]) -> str:
        named, found = (path, results) if results is not None else (section[1], load(ROOT / section[1]))
        return "\n\n".join([f"<!-- python -m benchmarks.generation.tables {named} -->", written(found), "<!-- end -->"])

    return _BEGIN.sub(made, document)


def _said(results: Results) -> str:
    machine, before = results.machine, results.load_average[0]
    return (
        f"Of {results.date}, {results.options['rounds']} rounds, {results.options['threads']} threads, "
        f"{machine['cpus']} CPUs ({machine['cpu']}) with a load of {before:.1f} before it began; onnxruntime "
        f"{results.versions['onnxruntime']}, onnxruntime-genai {results.versions['onnxruntime-genai']}"
        + (f", ctranslate2 {results.versions['ctranslate2']}" if "ctranslate2" in results.versions else "")
        + "."
    )


def _throughput(results: Results) -> str:
    lines = []
    for (load_name, streams), rounds in by_engine(results).items():
        clock, cpu = (_to_genai(rounds, field) for field in ("tokens_per_s", "tokens_per_cpu_s"))
        verdict = ""
        if streams in GOAL_STREAMS:
            verdict = "reached" if clock.middle >= SPEED_GOAL else "missed"
        speeds = [f"{_median(rounds[name], 'tokens_per_s'):.0f}" for name in _engines(results)]
        lines.append([load_name, str(streams), *speeds, str(clock), str(cpu), verdict])
    heads = ["load", "streams", *(_NAMES[name] for name in _engines(results))]
    return _table([*heads, "slots / genai's better", "in CPU time", f"goal {SPEED_GOAL}"], lines)


def _first(results: Results) -> str:
    lines = []
    for (load_name, streams), rounds in by_engine(results).items():
        others = [[each.first_s for each in rounds[name]] for name in _engines(results) if name != "slots"]
        compared = ratio([each.first_s for each in rounds["slots"]], others, min)
        seconds = [f"{_median(rounds[name], 'first_s'):.2f}" for name in _engines(results)]
        lines.append([load_name, str(streams), *seconds, str(compared)])
    return _table(["load", "streams", *(_NAMES[name] for name in _engines(results)), "slots / the best other"], lines)


def _overhead(results: Results) -> str:
    lines = []
    behind = dict(PAIRS)
    for name, answers in results.overhead.items():
        cells = [_ms(answers, "first_s"), _ms(answers, "next_s")]
        if name in behind:
            for field in ("first_s", "next_s"):
                share, seconds = added(answers, results.overhead[behind[name]], field)
                is_reached = share <= SHARE_GOAL or seconds <= ADDED_GOAL_S
                cells.append(f"{1e3 * seconds:+.2f} ms ({share:+.0%}), {'reached' if is_reached else 'missed'}")
        lines.append([name, behind.get(name, ""), *cells, *[""] * (4 - len(cells))])
    heads = ["", "in front of", "first token, ms", "next token, ms", "added to the first", "added to each next"]
    return _table(heads, lines)


def _turns(results: Results) -> str:
    with_first = [turn.with_first for turn in results.turns]
    without = [turn.without for turn in results.turns]
    share = median(one.first_s / other.first_s for one, other in zip(with_first, without, strict=True))
    return (
        f"The second turn of a conversation, {_median(with_first, 'prompt_tokens'):.0f} tokens of which "
        f"{_median(with_first, 'cached'):.0f} lie in the slot of the first: {_ms(with_first, 'first_s')} ms to its "
        f"first token, against {_ms(without, 'first_s')} ms for a text as long of which nothing is known: {share:.2f} "
        f"of it, median of {len(results.turns)} conversations."
    )


def _driven(results: Results) -> str:
    driven = results.driven
    assert driven is not None
    return (
        f"AIPerf {results.versions['aiperf']} drives a core's /v1 as it would any server: {driven.requests} requests, "
        f"{driven.errors:.0%} errors, {driven.tokens_per_s:.0f} tokens/s; first token {driven.first_ms['p50']:.0f} ms "
        f"(p50), {driven.first_ms['p99']:.0f} (p99); next token {driven.next_ms['p50']:.1f} and "
        f"{driven.next_ms['p99']:.1f} ms."
    )


def _engines(results: Results) -> list[str]:
    there = {each.engine for each in results.throughput}
    return [name for name in ENGINES if name in there]


def _to_genai(rounds: Mapping[str, Sequence[Timed]], field: str) -> Ratio:
    """Compare slots with the better of genai's two ways."""
    ours, *genai = [
        [float(getattr(each, field)) for each in rounds[name]] for name in ("slots", *GENAI) if name in rounds
    ]
    return ratio(ours, genai)


def _median(measured: Sequence[Answer | Timed], field: str) -> float:
    return float(median(getattr(each, field) for each in measured))


def _ms(answers: Sequence[Answer], field: str) -> str:
    return f"{1e3 * _median(answers, field):.2f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _CHARS, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation.tables", description=__doc__)
    parser.add_argument("results", type=Path, help="a file of benchmarks/results")
    path = parser.parse_args().results.resolve()
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(rewritten(text, load(path), str(path.relative_to(ROOT))), encoding="utf-8")


if __name__ == "__main__":
    main()
