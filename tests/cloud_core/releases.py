"""What a fleet runs at the start of a test, as a rollout that succeeded long ago would have left it."""

from __future__ import annotations

from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from cloud_core.state import fleet as rows


def released(database: Database, registry: Registry, model: str, digest: str) -> None:
    """Make a version the fleet's release, with its newest certificates; call it before the service is opened."""
    certificates = tuple(one for one, _ in registry.certificates_of(digest))
    row = rows.ReleaseRow(model=model, digest=digest, certificates=certificates)
    database.run_now(lambda transaction: rows.set_release(transaction, row))


def certificate_of(registry: Registry, digest: str) -> str:
    """Return the newest certificate of an artifact; "" when there is none."""
    found = registry.certificate_of(digest) if digest else None
    return found[0] if found else ""
