"""A directory that was built for onnxruntime-genai already, as a source: measured and served as it is.

Decides what is refused, and reads in which numbers it computes. Builds nothing and needs no toolchain. Where it was
built, and from what, is not known: it is compared with no float parent.
"""

from __future__ import annotations

from pathlib import Path

from compiler.generation import serving_engine
from compiler.graph import coverage, files
from compiler.recipe.targets import Precision, Target
from penstock.errors import CompileError, ConfigError
from penstock.runtime.generation.decoder_file import CONFIG_FILE, read_config

MODEL_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"


def is_built(source: Path) -> bool:
    """Say whether a source is such a directory."""
    return (source / CONFIG_FILE).is_file()


def check(directory: Path, target: Target) -> None:
    """Refuse a directory that cannot be served as one variant for a target.

    Raises:
        CompileError: a file is missing, or the model lies where its engine would not find it in an artifact.
        ConfigError: it was built for another provider than the target's.
    """
    provider = serving_engine.provider_of(directory)
    named = read_config(directory)["model"].get("decoder", {}).get("filename")
    if named != MODEL_FILE:
        raise CompileError(f"{directory.name}: {CONFIG_FILE} names {named!r}; an artifact needs one {MODEL_FILE}")
    for name in (MODEL_FILE, TOKENIZER_FILE):
        if not (directory / name).is_file():
            raise CompileError(f"{directory.name}: no {name} beside {CONFIG_FILE}; is it a part of a download?")
    if below := sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")):
        raise CompileError(f"{directory.name}: a directory in it, {below[0]}; a variant's files lie side by side")
    if provider != target.provider:
        raise ConfigError(
            f"{directory.name} was built for {provider}, and target {target.name} runs on {target.provider}; name the "
            "target that it was built for, or build it again"
        )


def further_files(directory: Path) -> tuple[Path, ...]:
    """Return every file beside the model that travels with it, by name; hidden ones are a downloader's."""
    return tuple(
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MODEL_FILE and not path.name.startswith(".")
    )


def precision_of(directory: Path) -> Precision:
    """Read in which numbers the model computes.

    Raises:
        CompileError: the model is no ONNX file, or one that is refused.
    """
    return coverage.precision_of(files.read_graph(directory / MODEL_FILE, field="model"))
