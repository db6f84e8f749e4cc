"""Language models through onnxruntime-genai's builder: what is refused. Builds are ``tests/compiler/generation``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.recipe.targets import GENAI_CPU, resolve
from penstock.errors import CompileError, ConfigError, InvalidInput, MissingToolchain


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that looks like a Hugging Face model, as far as it is looked at before a toolchain is started."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def job(source: Path, out: Path, *, target: str = GENAI_CPU, **options: Any) -> PassJob:
    out.mkdir(exist_ok=True)
    return PassJob(source=source, out=out, target=resolve(target), options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precison": "int4"}, "unknown option 'precison'; did you mean 'precision'"),
        ({"precision": "int3"}, "int3"),
        ({"block_size": 48}, "48"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"precision": "fp16"}, "fp16 is for genai-cuda"),
    ],
)
def test_options_that_do_not_exist_or_suit(model: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        genai.run(job(model, tmp_path / "out", **options))


def test_other_targets_run_no_language_models(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target x86-64 runs no language models; use genai-cpu or genai-cuda"):
        genai.run(job(model, tmp_path / "out", target="x86-64"))


def test_nothing_is_kept_in_float_of_a_float_model(model: Path, tmp_path: Path) -> None:
    kept = replace(job(model, tmp_path / "out", precision="fp32"), keep_float=frozenset({"/lm_head/MatMul"}))
    with pytest.raises(ConfigError, match="the whole model is fp32"):
        genai.run(kept)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer in the directory; expected tokenizer.json .*save_pretrained"),
        ("model.safetensors", None, "no weights"),
        ("config.json", None, "no config.json; expected a Hugging Face model directory"),
        ("config.json", "{oops", "config.json is not JSON"),
        ("config.json", "[1]", "config.json holds no object"),
        ("config.json", "{}", "names no architecture"),
        ("config.json", '{"architectures": []}', "names no architecture"),
    ],
)
def test_directories_that_are_no_models(
    model: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_text(content)
    with pytest.raises(CompileError, match=message):
        genai.run(job(model, tmp_path / "out"))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such directory; expected a Hugging Face directory or a .gguf file"):
        genai.run(job(tmp_path / "none", tmp_path / "out"))
    with pytest.raises(InvalidInput, match="no such file"):
        genai.run(job(tmp_path / "none.gguf", tmp_path / "out"))


def test_a_missing_toolchain_says_how_to_get_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_TOOLCHAIN_OPTIMUM", raising=False)
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path / "nothing"))
    with pytest.raises(MissingToolchain, match="penstock toolchain install optimum"):
        genai.run(job(model, tmp_path / "out"))


def test_an_unsupported_architecture_is_named_with_those_that_are(
    model: Path, tmp_path: Path, toolchain: Callable[[str], str]
) -> None:
    toolchain("optimum")
    (model / "config.json").write_text('{"architectures": ["OracleForCausalLM"], "model_type": "llama"}')
    with pytest.raises(
        CompileError, match="architecture OracleForCausalLM is not one .* 0.15.2 can build.*LlamaForCausalLM"
    ):
        genai.run(job(model, tmp_path / "out"))
