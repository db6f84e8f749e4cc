"""Variants run as they are packed, after they proved themselves on this machine (``penstock.hosting.loading``).

Owns that no figure is measured with a variant that has not given its golden outputs here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.recipe import targets
from penstock.artifact import variant_files
from penstock.artifact.blobs import disk_errors
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Variant
from penstock.errors import CompileError, ConfigError
from penstock.hosting import loading
from penstock.hosting.loading import Loaded
from penstock.runtime.onnx import has_provider


def runs_here(variant: Variant) -> bool:
    """Say whether this machine's answers are those of the variant's target: it is one, or has what computes there."""
    try:
        if targets.resolve(variant.spec.target).runs_here:
            return True
    except ConfigError:
        return False  # a target of a newer version: nothing is known of what it needs
    spec = variant.spec
    return spec.engine == "onnx" and spec.provider != "cpu" and has_provider(spec.provider)


@contextmanager
def opened(layout: Layout, variant: Variant) -> Iterator[Loaded]:
    """Load a packed variant and let it prove itself on this machine; it is closed afterwards.

    Raises:
        CompileError: it was packed without golden vectors: a promise needs something that shows what runs here.
        ArtifactError, DigestMismatch and others: as :func:`penstock.hosting.loading.load`.
    """
    if variant.golden is None:
        raise CompileError(
            f"variant {variant.digest} has no golden vectors: nothing shows that it computes the same here"
        )
    with disk_errors("making a directory to unpack a variant in"):
        scratch = tempfile.TemporaryDirectory(prefix="penstock-certify-")
    with scratch as root:
        files = variant_files.verified_files(variant, layout.blobs, Path(root))
        loaded = loading.load(variant.spec, files, threads=1)
        try:
            yield loaded
        finally:
            loaded.engine.close()
