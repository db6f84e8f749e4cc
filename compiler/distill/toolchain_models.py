"""Models that only their own framework can run: which toolchain does it, how a job names them, what they depend on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.recipe.distill_section import Config, Factory, Layers, StudentKind
from penstock.artifact.blobs import digest_of, digest_of_file, disk_errors
from penstock.artifact.manifests import canonical_json

TORCH, HUGGING_FACE = "torch", "optimum"
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A Hugging Face directory: ``config.json`` and weights."""

    path: Path


ToolchainModel = Factory | Directory


def as_job(model: ToolchainModel | StudentKind) -> dict[str, Any]:
    """Return the form that ``compiler/runners/distill_models.py`` reads."""
    match model:
        case Factory():
            return {"kind": "factory", "named": model.named, "factory": model.function,
                    "module": model.module, "file": model.file}  # fmt: skip
        case Directory():
            return {"kind": "directory", "path": model.path}
        case Config():
            return {"kind": "config", "path": model.file}
        case Layers():
            return {"kind": "layers", "keep_every": model.keep_every}


def toolchain_of(model: ToolchainModel | StudentKind) -> str:
    """Return the toolchain that runs it; layers are their teacher's."""
    return HUGGING_FACE if isinstance(model, Directory | Config) else TORCH


def content_of(model: ToolchainModel | StudentKind) -> str:
    """Return a digest of what is known to make a model.

    That is every file of a directory, and of a factory the Python beside it, and name, size and date of the weights
    beside it. What else a factory reads cannot be known without running it.

    Raises:
        StorageError: a file cannot be read.
    """
    with disk_errors(f"reading {model}"):
        return digest_of(canonical_json(_parts(model)))


def _parts(model: ToolchainModel | StudentKind) -> list[Any]:
    match model:
        case Directory(path=path):
            files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            return [[str(file.relative_to(path)), digest_of_file(file)] for file in files]
        case Config(file=file):
            return [digest_of_file(file)]
        case Layers(keep_every=keep_every):
            return ["layers", keep_every]
        case Factory(file=None, named=named):
            return [named]
        case Factory(function=function, file=file):
            assert file is not None
            beside = sorted(other for other in file.parent.iterdir() if other.is_file())
            code = [[other.name, digest_of_file(other)] for other in beside if other.suffix == ".py"]
            stats = [(other.name, other.stat()) for other in beside if other.suffix in _WEIGHTS]
            return [file.name, function, code, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]
