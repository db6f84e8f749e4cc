"""Models in, ONNX out: what a recipe names is found (``detect``), known by content (``fingerprint``) and exported.

Importing this imports no model library. Language models are only recognised here; building them is a pass of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from compiler.progress import Progress
from compiler.recipe.source_section import SourceSection
from compiler.sources.content import fingerprint
from compiler.sources.detection import Kind, Source, detect
from compiler.sources.exported import Exported
from penstock.errors import CompileError

__all__ = ["Exported", "Source", "SourceSection", "detect", "export", "fingerprint", "toolchain_of"]

_EXPORTERS: Mapping[Kind, str] = {
    "onnx": "compiler.sources.onnx_files",
    "huggingface": "compiler.sources.huggingface",
    "torch": "compiler.sources.torch_modules",
    "program": "compiler.sources.torch_modules",
    "sklearn": "compiler.sources.estimators",
}


def export(source: Source, section: SourceSection, out: Path, *, progress: Progress, seed: int = 0) -> Exported:
    """Make the ONNX file of a model, and show that it answers as the original does.

    Args:
        out: an empty directory; everything that is returned is in it.
        progress: told the share done, 0 to 1, and a short note.
        seed: for weights that a torch factory leaves random.

    Raises:
        CompileError: the export fails, or its answers differ from the original's; the message shows where.
        InvalidInput, ConfigError: the model or its table of the recipe is wrong.
        MissingToolchain, MissingExtra: what is needed is not installed; the message says how to get it.
    """
    if source.kind == "llm":
        raise CompileError(
            f"{source.location.name} is {source.what}: it is built for onnxruntime-genai, not exported as one graph; "
            'use a genai target, or source.framework = "huggingface" with a task'
        )
    exported: Exported = importlib.import_module(_EXPORTERS[source.kind]).export(
        source, section, out, progress=progress, seed=seed
    )
    return exported


def toolchain_of(source: Source, section: SourceSection) -> str:
    """Return the toolchain that exporting needs; "" for none. Its versions are part of what an export depends on."""
    by_kind = {"huggingface": section.toolchain, "torch": "torch", "program": "torch"}
    return by_kind.get(source.kind, "")
