"""Opens an onnxruntime model package: ``penstock artifact export`` has what it wrote read by the one it is for."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from penstock.errors import ArtifactError, MissingExtra
from penstock.runtime.onnx import OnnxEngine


def load(package: Path, component: str) -> OnnxEngine:
    """Load the variant of ``component`` that onnxruntime chooses for the CPU.

    Raises:
        ArtifactError: onnxruntime does not accept the package. MissingExtra: this onnxruntime cannot open packages.
    """
    if not hasattr(ort, "ModelPackageContext"):
        raise MissingExtra(f"onnxruntime {ort.__version__} cannot open model packages from Python; 1.32 and later can")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        context = ort.ModelPackageContext(str(package))
        chosen = context.select_component(component, ort.ModelPackageOptions(options))
        return OnnxEngine(chosen.create_session())
    except Exception as error:  # its exceptions share no base below Exception
        raise ArtifactError(f"{package}: onnxruntime does not open it: {str(error)[:500]}") from error
