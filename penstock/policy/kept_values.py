"""Values that are kept for who asks again, bounded in bytes and in age: what was not asked for longest goes first.

Decides what stays; what a value is and what it weighs, its owner knows. Reads no clock: ``now`` comes in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")

LARGEST_SHARE = 8
"""A value that takes more than this part of the room is not kept: it would push out many."""


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    size_bytes: int
    kept_at: float


class KeptValues(Generic[V]):
    """Values by key, the one that was used last at the end.

    Attributes:
        max_bytes: that all of them may take.
        size_bytes: that they take.
        ended: how many went: to make room, or because they were too old.
    """

    def __init__(self, max_bytes: int, *, ttl_s: float = 0.0) -> None:
        """
        Args:
            max_bytes: 0 keeps none.
            ttl_s: a value is too old so long after it was put here, however often it was used; 0 for never.
        """
        self.max_bytes, self._ttl_s = max_bytes, ttl_s
        self._kept: OrderedDict[bytes, _Kept[V]] = OrderedDict()
        self.size_bytes = self.ended = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[bytes]:
        """Go through the keys, beginning with the one that makes room first."""
        return iter(self._kept)

    def __repr__(self) -> str:
        return f"KeptValues({len(self._kept)} of {self.size_bytes} bytes, at most {self.max_bytes})"

    def get(self, key: bytes, now: float = 0.0) -> V | None:
        """Return a value, which is then the last one to go; None if there is none that is young enough."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if self._ttl_s and now - kept.kept_at >= self._ttl_s:
            self._drop(key)
            self.ended += 1
            return None
        self._kept.move_to_end(key)
        return kept.value

    def fits(self, size_bytes: int) -> bool:
        """Say whether a value of this size would be kept."""
        return size_bytes * LARGEST_SHARE <= self.max_bytes

    def put(self, key: bytes, value: V, size_bytes: int, now: float = 0.0) -> None:
        """Keep a value, in place of the one before it, unless it is too large."""
        if not self.fits(size_bytes):
            return
        self._drop(key)
        self._kept[key] = _Kept(value, size_bytes, now)
        self.size_bytes += size_bytes
        while self.size_bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))
            self.ended += 1

    def clear(self) -> None:
        """Keep nothing of what is here."""
        self._kept.clear()
        self.size_bytes = 0

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.size_bytes -= kept.size_bytes
