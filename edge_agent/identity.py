"""Tells who this device is. Owns one small file that no deployment, update or repair ever rewrites.

A device that loses its name becomes a new device, and its history, its outcomes and its place in a rollout are gone.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from penstock.artifact.blobs import disk_errors, write_atomically
from penstock.errors import InvalidInput, StorageError
from penstock.wire.device_ids import check_device_id

_FILE = "device_id"


def device_id(data_dir: Path, configured: str = "") -> str:
    """Return the configured id; else the one kept in ``data_dir``; else a new one, kept there from now on.

    Args:
        configured: was checked with the settings; "" for none.

    Raises:
        StorageError: the kept one is damaged or cannot be read, or a new one cannot be written.
    """
    if configured:
        return configured
    path = data_dir / _FILE
    with disk_errors(f"reading {path}"):
        kept = path.read_bytes().decode("utf-8", "replace").strip() if path.exists() else None
    if kept is None:
        kept = uuid.uuid4().hex
        write_atomically(path, kept.encode() + b"\n")
    try:
        return check_device_id(kept)
    except InvalidInput as error:
        raise StorageError(
            f"{path}: {error.message}; restore it, set device_id in the settings to the known one, or delete the file "
            "to become a new device"
        ) from None
