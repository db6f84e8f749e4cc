"""Bounds of the registry. The composition root nests this section in the core's settings as ``[registry]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of pushes and of what is kept.

    Attributes:
        directory: where blobs are; "" is registry/ below data_dir. Cores that take each other's place share it.
        max_blob_bytes: largest blob that is accepted.
        max_manifest_bytes: largest manifest (OCI asks for 4 MiB).
        max_uploads: unfinished uploads at a time.
        upload_idle_s: an upload untouched for longer gives way to a new one when there are too many.
        upload_ttl_s: an upload untouched for longer is dropped when another begins, at a start, and by
            ``penstock core gc``.
        max_manifests: manifests in the whole registry; the catalog is held in memory.
        orphan_ttl_s: a blob that no manifest refers to is kept for so long after a push sent or looked for it; the
            manifest may be on its way. Then it is removed at the next start, or by ``penstock core gc``. Temporary
            files that a killed process left are kept for as long.
    """

    directory: str = ""
    max_blob_bytes: _Count = 64 * 1024**3
    max_manifest_bytes: _Count = 4 * 1024**2
    max_uploads: _Count = 64
    upload_idle_s: _Seconds = 60.0
    upload_ttl_s: _Seconds = 24 * 3600.0
    max_manifests: _Count = 100_000
    orphan_ttl_s: _Seconds = 24 * 3600.0

    def root(self, data_dir: Path) -> Path:
        """Return where the registry of a core with this data directory is."""
        return Path(self.directory) if self.directory else data_dir / "registry"
