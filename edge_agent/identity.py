"""Tells who this device is. Owns one small file that no deployment, update or repair ever rewrites.

A device that loses its name becomes a new device, and its history, its outcomes and its place in a rollout are gone.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from edge_agent.policy.place import Place
from penstock.artifact.blobs import disk_errors, write_atomically
from penstock.errors import InvalidInput, StorageError
from penstock.process import machine
from penstock.wire.device_ids import check_device_id

LOCK_FILE = "lock"
_FILE = "device_id"


def place(data_dir: Path) -> Place:
    """Return what can be seen of where the data directory is, so that a copy of it is found to be one.

    The witness is the lock file: it is made once, never written, and comes along with a copy as a file of its own.
    """
    try:
        found = (data_dir / LOCK_FILE).stat()
    except OSError:
        return Place(serial=machine.serial_number())
    return Place(inode=found.st_ino, changed_at_ns=found.st_ctime_ns, serial=machine.serial_number())


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
