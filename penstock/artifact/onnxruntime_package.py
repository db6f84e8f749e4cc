"""An artifact's ONNX variants as an onnxruntime model package: a directory that its ``ModelPackage`` API opens.

Owns the layout that onnxruntime 1.29 and later reads (schema 1.0): ``manifest.json`` names components, which are our
rungs; ``COMPONENT/component.json`` names variants by execution provider; a variant's directory holds its files. Does
not run anything: ``penstock.runtime.onnx_package`` opens what was written.

A package tells variants of a component apart by execution provider only, the first that fits wins. Two CPU variants
for different instruction sets can therefore not be in one: which of them is, must be said.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.artifact import manifests
from penstock.artifact.blobs import BlobStore, as_the_umask_says, disk_errors
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Artifact, Variant
from penstock.errors import ArtifactError, Conflict, InvalidInput

SCHEMA_VERSION = "1.0"
_PROVIDERS = manifests.EXECUTION_PROVIDERS


def export(layout: Layout, out: Path, wanted: Sequence[str] = ()) -> tuple[Variant, ...]:
    """Write a package of an artifact's variants at ``out``, which must not exist or be empty.

    Args:
        wanted: ``role/target`` of variants; () takes all ONNX variants.

    Returns:
        The variants in it.

    Raises:
        InvalidInput: no such variant, an engine that a package cannot hold, or two that it could not tell apart.
        ArtifactError: a blob is damaged. Conflict: ``out`` is in use. StorageError: the disk said no.
    """
    artifact = layout.artifact()
    variants = choose(artifact, wanted)
    with disk_errors(f"writing {out}"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise Conflict(f"{out} exists and is not an empty directory; choose another one")
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            _write(scratch, artifact, variants, layout)
            as_the_umask_says(scratch)
            os.replace(scratch, out)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return variants


def choose(artifact: Artifact, wanted: Sequence[str]) -> tuple[Variant, ...]:
    """Choose the variants that go into a package.

    Raises:
        InvalidInput: as for :func:`export`.
    """
    by_name = {_name(variant): variant for variant in artifact.variants}
    for name in wanted:
        if name not in by_name:
            raise InvalidInput(f"--variant: {name!r}; the artifact has {', '.join(by_name)}", field="variant")
    asked = [by_name[name] for name in dict.fromkeys(wanted)] or list(artifact.variants)
    held = tuple(variant for variant in asked if variant.spec.engine == "onnx" and variant.spec.provider in _PROVIDERS)
    if not held or (wanted and len(held) < len(asked)):
        others = ", ".join(f"{_name(v)} ({v.spec.engine}, {v.spec.provider})" for v in asked if v not in held)
        raise InvalidInput(
            f"an onnxruntime model package holds ONNX graphs for {', '.join(_PROVIDERS)}, not {others}", field="variant"
        )
    seen: dict[tuple[str, str], Variant] = {}
    for variant in held:
        first = seen.setdefault((variant.spec.role, variant.spec.provider), variant)
        if first is not variant:
            raise InvalidInput(
                f"a package cannot tell {_name(first)} from {_name(variant)}: it chooses by execution provider only, "
                f"and both run on {variant.spec.provider}; say which with --variant",
                field="variant",
            )
    return held


def component_of(variant: Variant) -> str:
    """Return the component that holds a variant: its rung."""
    return variant.spec.role


def _write(root: Path, artifact: Artifact, variants: Sequence[Variant], layout: Layout) -> None:
    components: dict[str, dict[str, Any]] = {}
    for variant in variants:
        spec = variant.spec
        directory = root / component_of(variant) / spec.target
        directory.mkdir(parents=True)
        for described in (variant.weights, *variant.files):
            name = manifests.check_file_name(described.annotations.get(manifests.TITLE, "model.onnx"))
            shutil.copyfile(_verified(layout.blobs, described), directory / name)
        components.setdefault(component_of(variant), {})[spec.target] = {
            "ep": _PROVIDERS[spec.provider],
            "executor_info": {"ort": {"model_file": variant.weights.annotations.get(manifests.TITLE, "model.onnx")}},
            "additional_metadata": {"digest": variant.digest, "precision": spec.precision},
        }
    for name, entries in components.items():
        (root / name / "component.json").write_bytes(manifests.canonical_json({"variants": entries}))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "layout": "portable",
        "package_name": artifact.model,
        "package_version": layout.tag,
        "components": {name: name for name in components},
        "additional_metadata": {"producer": "penstock", "artifact": artifact.digest},
    }
    (root / "manifest.json").write_bytes(manifests.canonical_json(manifest))


def _verified(blobs: BlobStore, described: manifests.Descriptor) -> Path:
    path = blobs.verify(described.digest)
    if path.stat().st_size != described.size:
        raise ArtifactError(f"blob {described.digest} has not the {described.size} bytes that its descriptor says")
    return path


def _name(variant: Variant) -> str:
    return f"{variant.spec.role}/{variant.spec.target}"
