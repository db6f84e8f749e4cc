"""What may be kept of a request's tensors: rules name tensors as ``model/tensor``, with ``*`` and ``?``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HASH_BYTES = 16


def redacted(
    tensors: Mapping[str, NDArray[Any]], model: str, *, drop: Sequence[str], hashed: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Copy what may be kept.

    Args:
        drop: tensors that are left out.
        hashed: tensors of which only a hash of each row is kept: rows can be told apart, and not read.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, array in tensors.items():
        place = f"{model}/{name}"
        if _matches(place, drop):
            continue
        found[name] = _hashes(array) if _matches(place, hashed) else array.copy()
    return found


def _matches(place: str, rules: Sequence[str]) -> bool:
    return any(fnmatchcase(place, rule) for rule in rules)


def _hashes(array: NDArray[Any]) -> NDArray[Any]:
    rows = array if array.ndim else array.reshape(1)
    hashes = np.empty(len(rows), dtype=object)
    hashes[:] = [hashlib.sha256(_bytes(row)).digest()[:_HASH_BYTES].hex().encode() for row in rows]
    return hashes


def _bytes(row: Any) -> bytes:
    array = np.asarray(row)
    if array.dtype.kind != "O":
        return array.tobytes()
    parts = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
