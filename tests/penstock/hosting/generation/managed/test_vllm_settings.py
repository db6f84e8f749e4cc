"""What vLLM is started with follows from its settings; what contradicts them is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_core.settings import CoreSettings, check
from penstock.errors import ConfigError, MissingToolchain
from penstock.generation import tokenizer
from penstock.hosting.generation.managed.settings import VllmSettings
from penstock.hosting.generation.managed.vllm import ManagedServers, command
from tests.penstock.hosting.generation.letters import tokenizer_json
from tests.penstock.hosting.generation.managed.stand_in_model import NAME, servers, settings

TOLD = tokenizer.load({tokenizer.FILE: tokenizer_json()}).facts


def test_the_command_says_what_the_settings_say(tmp_path: Path) -> None:
    plain = command(VllmSettings(directory=str(tmp_path)), NAME, Path("/opt/python"), Path("/run/s"))
    assert plain[:3] == ["/opt/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert not {"--enforce-eager", "--max-model-len", "--kv-cache-memory-bytes", "--data-parallel-size"} & set(plain)
    assert plain[plain.index("--generation-config") + 1] == "vllm", "no defaults of the model's that nobody asked for"
    sharded = VllmSettings(
        directory=str(tmp_path), tensor_parallel=2, pipeline_parallel=4, data_parallel=3, dtype="bfloat16",
        context_tokens=4096, kv_cache_bytes=2**30, enforce_eager=True, arguments=("--swap-space=0",), exit_s=7.0,
    )  # fmt: skip
    words = command(sharded, NAME, Path("python"), Path("s"))
    for name, value in {
        "--tensor-parallel-size": "2",
        "--pipeline-parallel-size": "4",
        "--data-parallel-size": "3",
        "--dtype": "bfloat16",
        "--max-model-len": "4096",
        "--kv-cache-memory-bytes": str(2**30),
        "--shutdown-timeout": "7",
        "--uds": "s",
    }.items():
        assert words[words.index(name) + 1] == value
    assert words[-2:] == ["--enforce-eager", "--swap-space=0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arguments": ("--host=0.0.0.0",)}, "--host follows from other settings"),
        ({"arguments": ("--tensor_parallel_size", "2")}, "--tensor-parallel-size"),
        ({"environment": {"HOME": "/"}}, "HOME is set already"),
        ({"environment": {"HF_HUB_OFFLINE": "0"}}, "HF_HUB_OFFLINE"),
        ({"directory": "/nowhere"}, "no config.json"),
        ({"context_tokens": 0}, "set context_tokens"),
    ],
)
def test_what_contradicts_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    made = servers(tmp_path, settings(tmp_path, **changes))
    with pytest.raises(ConfigError, match=words):
        made.generator(NAME, TOLD)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tensor_parallel": 0},
        {"dtype": "int4"},
        {"arguments": ["x"] * 65},
        {"hang_s": 0},
        {"kv_space": 1},
        {"directory": ""},
    ],
)
def test_what_is_no_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"directory": "x", **wrong}, VllmSettings)


def test_without_an_interpreter_it_is_said_what_to_do(tmp_path: Path) -> None:
    def absent() -> Path:
        raise MissingToolchain("penstock toolchain install vllm")

    made = ManagedServers(settings={NAME: settings(tmp_path)}, interpreter=absent, directory=tmp_path, environment={})
    with pytest.raises(MissingToolchain, match="install vllm"):
        made.generator(NAME, TOLD)


def test_a_model_runs_in_one_place(tmp_path: Path) -> None:
    generation = {"vllm": {"chat": {"directory": "x"}}, "remote": {"urls": {"chat": ["http://host:1"]}}}
    wrong = msgspec.convert({"serving": {"generation": generation}}, CoreSettings)
    with pytest.raises(ConfigError, match="it can run in one of them"):
        check(wrong)
