"""Models that only their own framework can run: which toolchain does it, and how a job names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.distill.section import Config, Factory, Layers, StudentKind

TORCH, HUGGING_FACE = "torch", "optimum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A Hugging Face directory: ``config.json`` and weights."""

    path: Path


ToolchainModel = Factory | Directory


def as_job(model: ToolchainModel | StudentKind) -> dict[str, Any]:
    """The form that ``compiler/runners/distill_models.py`` reads."""
    match model:
        case Factory():
            return {"kind": "factory", "named": model.named, "function": model.function,
                    "module": model.module, "file": model.file}  # fmt: skip
        case Directory():
            return {"kind": "directory", "path": model.path}
        case Config():
            return {"kind": "config", "path": model.file}
        case Layers():
            return {"kind": "layers", "keep_every": model.keep_every}


def toolchain_of(model: ToolchainModel | StudentKind) -> str:
    """The toolchain that runs it; layers are their teacher's."""
    return HUGGING_FACE if isinstance(model, Directory | Config) else TORCH
