"""torch modules made by a factory, and ExportedProgram files, through toolchain ``torch``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from compiler.progress import Progress
from compiler.recipe.source_section import SourceSection
from compiler.sources import tidy
from compiler.sources.detection import Source
from compiler.sources.exported import Exported
from penstock.errors import ConfigError

RUNNER = "export_torch.py"


def export(source: Source, section: SourceSection, out: Path, *, progress: Progress, seed: int) -> Exported:
    """Export a torch module.

    Raises:
        MissingToolchain: torch is not installed. CompileError: the model cannot be made, exported, or differs.
        ConfigError: an input of text, which torch has no type for.
    """
    for name, given in section.inputs.items():
        if given.datatype == "BYTES":
            raise ConfigError(f"source.inputs.{name}: torch has no text; put the tokenizer in front of the model")
    named = f"{source.module or source.location.name}:{source.factory}" if source.factory else source.location.name
    settings = {
        "kind": "program" if source.kind == "program" else "factory",
        "file": str(source.location.absolute()),
        "module": source.module,
        "factory": source.factory,
        "named": named,
        "base": str(source.base.absolute()),
        "seed": seed,
        "opset": section.opset,
        "inputs": msgspec.to_builtins(section.inputs),
        "dynamic": msgspec.to_builtins(section.dynamic),
        "outputs": list(section.outputs),
        "allow_pickle": section.allow_pickle,
    }
    facts = {"framework": "torch", "source": named, "seed": seed}
    job = tidy.Job(toolchain="torch", runner=RUNNER, settings=settings, facts=facts, tolerance=section.tolerance)
    return tidy.export(job, out, progress=progress)
