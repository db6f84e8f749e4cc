"""A training's state on disk: whole or absent, and never another training's."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

_DIGEST_BYTES = 32


def save(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write, fsync, rename: after a power cut there is the old state or the new one."""
    buffer = io.BytesIO()
    torch.save({"key": key, "state": state}, buffer)
    data = buffer.getvalue()
    making = path.with_name(f".{path.name}.making")
    with making.open("wb") as file:
        file.write(hashlib.sha256(data).digest())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(making, path)


def load(path: Path, key: str) -> tuple[dict[str, Any] | None, str]:
    """Load the state; None, and why, for a file that is there and was not used."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, ""
    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        return None, "the checkpoint was damaged; training began again"
    kept = torch.load(io.BytesIO(data[_DIGEST_BYTES:]), weights_only=True)
    if kept["key"] != key:
        return None, "the checkpoint was of another student, other data or other settings; training began again"
    return kept["state"], ""
