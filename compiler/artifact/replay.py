"""Variants run as they are packed: unpacked where they have several files, loaded, and made to prove themselves.

Owns that no answer is taken from a variant that does not give its golden outputs on this machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.recipe import targets
from penstock.artifact import golden, manifests
from penstock.artifact.blobs import disk_errors
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Variant
from penstock.errors import ArtifactError, CompileError, ConfigError
from penstock.runtime import Engine, EngineOptions, load_engine

_MAX_GOLDEN_BYTES = 256 * 1024**2


def runs_here(variant: Variant) -> bool:
    """Whether this machine's answers are those of the variant's target."""
    try:
        return targets.resolve(variant.spec.target).runs_here
    except ConfigError:
        return False  # a target of a newer version: nothing is known of what it needs


@contextmanager
def opened(layout: Layout, variant: Variant) -> Iterator[Engine]:
    """A packed variant, loaded, after it gave its golden outputs again on this machine.

    Raises:
        ArtifactError: it cannot be loaded, or computes something else here.
    """
    spec = variant.spec
    with tempfile.TemporaryDirectory(prefix="penstock-certify-") as scratch, disk_errors("unpacking a variant"):
        path = layout.blobs.path(variant.weights.digest)
        if variant.files:
            path = _together(layout, variant, Path(scratch))
        engine = load_engine(spec.engine, path, EngineOptions(provider=spec.provider, threads=1))
        try:
            _prove(layout, variant, engine)
            yield engine
        finally:
            engine.close()


def _together(layout: Layout, variant: Variant, scratch: Path) -> Path:
    """A model of several files, under the names by which they know each other; onnxruntime follows no link out."""
    for described in (variant.weights, *variant.files):
        name = described.annotations.get(manifests.TITLE, "")
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"variant {variant.digest}: {name!r} is no name for a file of a model")
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = layout.blobs.path(described.digest)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    return scratch / variant.weights.annotations[manifests.TITLE]


def _prove(layout: Layout, variant: Variant, engine: Engine) -> None:
    if variant.golden is None:
        raise CompileError(
            f"variant {variant.digest} has no golden vectors: nothing shows that it computes the same here"
        )
    stored = golden.decode(layout.blobs.read(variant.golden.digest, limit_bytes=_MAX_GOLDEN_BYTES))
    produced = engine.run(stored.inputs)
    try:
        golden.check(stored, produced, tolerance=variant.spec.golden_tolerance)
    except ArtifactError as error:
        raise ArtifactError(f"{variant.spec.role} variant for {variant.spec.target}: {error.message}") from error
