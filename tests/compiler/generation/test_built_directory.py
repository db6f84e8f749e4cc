"""Directories that were built before are sources: what is taken, what is refused, and that none needs a toolchain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.cache.steps import StepCache
from compiler.generation import built_directory
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from compiler.recipe.targets import GENAI_CPU, GENAI_CUDA, resolve
from penstock.errors import CompileError, ConfigError
from tests.language import EDGE, MODELS

RECIPE = MODELS.parent / "recipe.toml"


@pytest.mark.parametrize(("name", "precision"), [(EDGE, "int4-weights"), ("edge-fp32", "fp32")])
def test_its_precision_is_read_from_what_it_holds(name: str, precision: str) -> None:
    built_directory.check(MODELS / name, resolve(GENAI_CPU))
    assert built_directory.precision_of(MODELS / name) == precision


def test_everything_beside_the_model_travels_but_what_a_downloader_left(tmp_path: Path) -> None:
    shutil.copytree(MODELS / EDGE, tmp_path / "model")
    (tmp_path / "model" / ".gitattributes").touch()
    (tmp_path / "model" / ".cache").mkdir()
    built_directory.check(tmp_path / "model", resolve(GENAI_CPU))
    names = {path.name for path in built_directory.further_files(tmp_path / "model")}
    assert names == {"genai_config.json", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"}


def _rename(directory: Path) -> None:
    config = json.loads((directory / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    (directory / "genai_config.json").write_text(json.dumps(config))


def _cuda(directory: Path) -> None:
    config = json.loads((directory / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]
    (directory / "genai_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda found: (found / "tokenizer.json").unlink(), CompileError, "no tokenizer.json beside genai_config.json"),
        (lambda found: (found / "model.onnx").unlink(), CompileError, "no model.onnx beside"),
        (lambda found: (found / "onnx").mkdir(), CompileError, "a directory in it, onnx"),
        (lambda found: (found / "genai_config.json").write_text("[]"), CompileError, "not a model for onnxruntime-gen"),
        (_rename, CompileError, "names 'decoder.onnx'; an artifact needs one model.onnx"),
        (_cuda, ConfigError, "built for cuda, and target genai-cpu runs on cpu"),
    ],
)
def test_what_cannot_be_served_as_one_variant_is_refused(
    tmp_path: Path, damage: Callable[[Path], Any], error: type[Exception], said: str
) -> None:
    shutil.copytree(MODELS / EDGE, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(error, match=said):
        built_directory.check(tmp_path / "model", resolve(GENAI_CPU))


def test_another_target_than_it_was_built_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="built for cpu, and target genai-cuda runs on cuda"):
        built_directory.check(MODELS / EDGE, resolve(GENAI_CUDA))


def _smoke(tmp_path: Path, text: str) -> Any:
    (tmp_path / "models").symlink_to(MODELS)
    (tmp_path / "recipe.toml").write_text(text.replace('"prompts.py:rows"', '"examples.codecomplete.prompts:rows"'))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    watcher = Lines(lambda line: None)
    return compilation.smoke(
        recipes.load(tmp_path / "recipe.toml"), scratch, cache=StepCache(tmp_path / "cache"), watcher=watcher
    )


def test_a_precision_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    text = RECIPE.read_text().replace("[cloud]", 'precisions = ["fp32"]\n\n[cloud]')
    with pytest.raises(ConfigError, match="models/edge-int4 was built in int4-weights already"):
        _smoke(tmp_path, text)
