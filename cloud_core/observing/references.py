"""Finds the reference that a version's artifact carries."""

from __future__ import annotations

import logging

from cloud_core.registry.registry import Registry
from penstock.artifact import manifests, row_reference
from penstock.artifact.row_reference import Reference
from penstock.errors import PenstockError
from penstock.process.telemetry import log

_LOG = logging.getLogger(__name__)


def carried_reference(registry: Registry, model: str, version: str) -> Reference | None:
    """Read the newest reference that refers to a version; None where there is none that can be read."""
    try:
        digest = registry.resolve(model, version).digest
        found = registry.referrers(model, digest, manifests.REFERENCE)
        if not found:
            return None
        layer = manifests.decode_manifest(registry.store.read(found[-1].digest)).layers[0]
        if layer.size > row_reference.MAX_BYTES:
            return None
        return row_reference.decode(manifests.read_described(layer, registry.store.read))
    except (PenstockError, IndexError) as error:
        log(_LOG, logging.WARNING, "a reference cannot be read", model=model, version=version, error=str(error))
        return None
