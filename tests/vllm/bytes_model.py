"""The tiny model whose tokens are bytes: how vLLM is started on it, what it has to answer, and what runs of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from penstock.generation import tokenizer
from penstock.hosting.generation import text_model
from penstock.hosting.generation.managed.generator import ManagedGenerator
from penstock.hosting.generation.managed.settings import VllmSettings
from penstock.hosting.generation.managed.vllm import ManagedServers

NAME = "bytes"
CONTEXT = 512
PATIENCE_S = 900.0
_CLEAR = 0.05  # of logits: below, another order of sums may choose another token

USUAL: dict[str, Any] = {
    "dtype": "float32",
    "context_tokens": CONTEXT,
    "kv_cache_bytes": 64 * 1024**2,
    "enforce_eager": True,
    "start_timeout_s": PATIENCE_S,
    "hang_s": 60.0,
    "exit_s": 15.0,
}


def generator(models: Path, root: Path, interpreter: Path, model: str = "bytes", **changes: Any) -> ManagedGenerator:
    directory = models / model
    settings = VllmSettings(**{"directory": str(directory), **USUAL, **changes})
    servers = ManagedServers(
        settings={NAME: settings}, interpreter=lambda: interpreter, directory=root, environment=os.environ
    )
    return servers.generator(NAME, tokenizer.load(text_model.read_files(directory)).facts)


def rows(models: Path) -> list[tuple[tuple[int, ...], list[int]]]:
    """Prompts, and the ids that follow for as long as each clearly leads."""
    told = json.loads((models / "references.json").read_text())
    found = []
    for row in told:
        clear = next((at for at, margin in enumerate(row["margins"]) if margin < _CLEAR), len(row["margins"]))
        if clear:
            found.append((tuple(row["ids"]), row["new"][:clear]))
    assert sum(len(new) for _, new in found) > 40
    return found


def members(pid: int) -> list[psutil.Process]:
    """All processes of a group that are not at their end."""
    return [one for one in psutil.process_iter() if _group(one) == pid and one.status() != psutil.STATUS_ZOMBIE]


def ranks(pid: int) -> list[psutil.Process]:
    found = [one for one in members(pid) if "VLLM::Worker" in " ".join(one.cmdline())]
    assert found
    return sorted(found, key=lambda one: one.pid)


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


async def running(url: str) -> float:
    """What vLLM says of the requests that it works on."""
    connector = aiohttp.UnixConnector(url.removeprefix("unix://"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://vllm/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running"))


class Clock:
    """Prints how long something took."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        print(f"\n  {self._what}: {time.perf_counter() - self._began:.1f} s", flush=True)
