"""AIPerf drives a core's /v1 as it would any server: what it says of us, in its own words. It knows nothing of ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.environments import last_line
from benchmarks.generation.models import NAME

PROMPT_TOKENS, NEW_TOKENS = 100, 24
_TIMEOUT_S = 240.0


class Driven(msgspec.Struct, frozen=True, kw_only=True):
    """What the load generator reports of one run.

    Attributes:
        command: with what it was called.
        requests: that were answered.
        errors: share of requests that were not.
    """

    command: str
    requests: int
    errors: float
    tokens_per_s: float
    first_ms: Mapping[str, float]
    next_ms: Mapping[str, float]


class NotDriven(RuntimeError):
    """The load generator failed; the message is its last line."""


def arguments(endpoint: str, tokenizer: Path, streams: int, requests: int) -> Sequence[str]:
    """Return how it is called: of what is special here there is only a tokenizer that lies on disk."""
    return [
        *("profile", "--model", NAME, "--url", f"http://{endpoint}", "--endpoint-type", "completions", "--streaming"),
        *("--tokenizer", str(tokenizer), "--concurrency", str(streams), "--request-count", str(requests)),
        *("--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--synthetic-input-tokens-stddev", "0"),
        *("--output-tokens-mean", str(NEW_TOKENS), "--output-tokens-stddev", "0", "--use-legacy-max-tokens"),
        *("--ui-type", "none", "--no-server-metrics", "--no-gpu-telemetry"),
    ]


def drive(python: Path, endpoint: str, *, tokenizer: Path, streams: int, requests: int, scratch: Path) -> Driven:
    """Run it, and read its export.

    Args:
        python: of its environment.

    Raises:
        NotDriven: it failed, or wrote none.
    """
    called = [*arguments(endpoint, tokenizer, streams, requests)]
    command = [str(python.with_name("aiperf")), *called, "--artifact-dir", str(scratch)]
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotDriven(f"aiperf: not done after {_TIMEOUT_S:.0f} s") from None
    export = scratch / "profile_export_aiperf.json"
    if done.returncode != 0 or not export.is_file():
        raise NotDriven(f"aiperf: {last_line(done.stderr or done.stdout)}")
    called[called.index(str(tokenizer))] = "DIR"
    return read_export(json.loads(export.read_text()), "aiperf " + " ".join(called).replace(endpoint, "CORE"))


def read_export(said: Mapping[str, Any], command: str) -> Driven:
    """Return what stands in its JSON export, schema 1."""
    shown = ("p50", "p90", "p99")
    return Driven(
        command=command,
        requests=int(said["request_count"]["avg"]),
        errors=float(said["request_error_rate"]["avg"]) / 100,
        tokens_per_s=float(said["output_token_throughput"]["avg"]),
        first_ms={name: said["time_to_first_token"][name] for name in shown},
        next_ms={name: said["inter_token_latency"][name] for name in shown},
    )
