"""Tells who this device is. Owns one small file that no deployment, update or repair ever rewrites.

A device that loses its name becomes a new device, and its history, its outcomes and its place in a rollout are gone.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from penstock.artifact.blobs import disk_errors, write_atomically
from penstock.errors import ConfigError, StorageError

_FILE = "device_id"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def device_id(data_dir: Path, configured: str = "") -> str:
    """Return the configured id; else the one kept in ``data_dir``; else a new one, kept there from now on.

    Raises:
        ConfigError: the configured id has other characters than letters, digits and ``. _ -``.
        StorageError: the kept one is damaged or cannot be read, or a new one cannot be written.
    """
    if configured:
        if not _ID.fullmatch(configured):
            raise ConfigError(f"device_id: {configured[:140]!r} must be 1 to 128 letters, digits and . _ -")
        return configured
    path = data_dir / _FILE
    with disk_errors(f"reading {path}"):
        kept = path.read_bytes().decode("utf-8", "replace").strip() if path.exists() else None
    if kept is None:
        kept = uuid.uuid4().hex
        write_atomically(path, kept.encode() + b"\n")
    if not _ID.fullmatch(kept):
        raise StorageError(
            f"{path} holds no device id ({kept[:40]!r}); restore it, set device_id in the settings to the known one, "
            "or delete the file to become a new device"
        )
    return kept
