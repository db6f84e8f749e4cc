"""ONNX files as sources: taken byte for byte, or made whole where their tensors are in other files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compiler.graph import files, zip_map
from compiler.progress import Progress
from compiler.recipe.source_section import SourceSection
from compiler.sources import companions, sentences
from compiler.sources.detection import Source
from compiler.sources.exported import Exported
from penstock.artifact.blobs import disk_errors
from penstock.errors import ConfigError

MODEL_FILE = "model.onnx"


def export(source: Source, section: SourceSection, out: Path, *, progress: Progress, seed: int) -> Exported:
    """Write a checked copy into ``out``; a model in one file keeps its bytes, and so its digest.

    Raises:
        InvalidInput, CompileError: not a model that onnxruntime can run. ConfigError: an opset that it does not have.
    """
    del seed  # nothing is drawn
    model = files.read(source.location, field="model")
    opset = files.opset(model)
    if section.opset and section.opset != opset:
        raise ConfigError(
            f"source.opset: {section.opset} given, but {source.location.name} is ONNX already, of opset {opset}; "
            "export it again with the opset that is wanted, or leave the setting out"
        )
    target, classes = out / MODEL_FILE, zip_map.cut(model)
    outside = files.data_files(source.location, field="model")
    progress(0.5, "reading")
    if outside or classes is not None:
        files.write(model, target)
    else:
        with disk_errors(f"writing {target}"):
            shutil.copyfile(source.location, target)
    files.check_runnable(target, field="model")
    is_directory = source.what.startswith("the ONNX file of")
    beside = companions.copy(source.location.parent, out) if is_directory else ()
    progress(1.0, "read")
    how = "ONNX, as it is" if not outside else f"ONNX, with {len(outside)} file(s) of external data brought in"
    facts: dict[str, Any] = {
        "framework": "onnx", "opset": opset, "ir_version": model.ir_version, "producer": model.producer_name
    }  # fmt: skip
    if is_directory:
        facts |= sentences.facts(source.location.parent)
    if classes is not None:
        how += ", its ZipMap cut"
        facts["labels"] = list(classes)
    return Exported(model=target, how=how, files=beside, facts=facts)
