"""A directory of a model and what starts the stand-in for vLLM on it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.generation import tokenizer
from penstock.hosting.generation.managed.generator import ManagedGenerator
from penstock.hosting.generation.managed.settings import VllmSettings
from penstock.hosting.generation.managed.vllm import ManagedServers
from tests.penstock.hosting.generation.letters import tokenizer_json
from tests.waiting import PATIENCE_S

STAND_IN = Path(__file__).parent / "stand_in"
NAME = "letters"


def model_directory(root: Path, **how: Any) -> Path:
    """``how`` it starts, as the stand-in reads it."""
    directory = root / "model"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "stand_in.json").write_text(json.dumps(how))
    return directory


def settings(root: Path, how: Mapping[str, Any] | None = None, **changes: Any) -> VllmSettings:
    """Settings of an impatient server with room for four and two more."""
    usual: dict[str, Any] = {
        "directory": str(model_directory(root, **(how or {}))),
        "context_tokens": 100_000,
        "max_sequences": 4,
        "max_waiting": 2,
        "environment": {"PYTHONPATH": str(STAND_IN)},
        "start_timeout_s": PATIENCE_S,
        "hang_s": PATIENCE_S,
        "exit_s": 20.0,
        "backoff_base_s": 0.01,
    }
    return VllmSettings(**usual | changes)


def servers(root: Path, of: VllmSettings) -> ManagedServers:
    return ManagedServers(
        settings={NAME: of},
        interpreter=lambda: Path(sys.executable),
        directory=root / "vllm",
        environment={**os.environ, "PENSTOCK_CORE_TOKEN": "secret", "XDG_CACHE_HOME": "/elsewhere"},
    )


def managed(root: Path, how: Mapping[str, Any] | None = None, **changes: Any) -> ManagedGenerator:
    """A generator that is not started yet."""
    told = tokenizer.load({tokenizer.FILE: tokenizer_json()}).facts
    return servers(root, settings(root, how, **changes)).generator(NAME, told)


def log_of(root: Path) -> str:
    return (root / "vllm" / NAME / "server.log").read_text()
