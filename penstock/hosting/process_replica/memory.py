"""Memory that a worker and its parent both have: a slot for each batch that may be under way.

A slot belongs to one side at a time: the parent's until a batch is sent, the worker's until the answer is. Whoever owns
it may let it grow, and the other side looks at its size before it looks inside. It has no name in any file system, so
that nothing is left of it when both are gone, whatever they died of.
"""

from __future__ import annotations

import mmap
import os

from penstock.runtime.arena import ArenaUse

_STEP = 1024 * 1024
"""It grows by whole steps, and by half at least: not with each batch that is a little larger than the one before."""

_USUAL_BYTES = 8 * 1024 * 1024
"""What a slot may keep for good. Beyond it, memory that a much larger batch took is given back, as an engine's is."""


def can_share() -> bool:
    """Say whether this system has such memory: Linux has."""
    return hasattr(os, "memfd_create")


class Slot:
    """One piece of memory of both processes. Views of it stay valid when it grows."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: of the memory; the slot owns it."""
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._use = ArenaUse(_USUAL_BYTES)

    @classmethod
    def create(cls) -> Slot:
        """Make one without memory.

        Raises:
            OSError: no descriptor is left.
        """
        return cls(os.memfd_create("penstock-batch"))

    def grown(self, size_bytes: int) -> memoryview:
        """Return the memory for its owner, so many bytes at least.

        Raises:
            OSError: there is no room for it.
        """
        if self._map is None or len(self._map) < size_bytes:
            have = os.fstat(self.descriptor).st_size  # the other side may have let it grow
            if have < size_bytes:
                wanted = max(size_bytes, have + have // 2)
                os.ftruncate(self.descriptor, -(-wanted // _STEP) * _STEP)
        return self.seen(size_bytes)

    def seen(self, size_bytes: int) -> memoryview:
        """Return the memory as the other side has left it, so many bytes of it at least.

        Raises:
            OSError, ValueError: it has fewer.
        """
        if self._map is None or len(self._map) < size_bytes:
            # the map before it lives for as long as somebody has a view of it
            self._map = mmap.mmap(self.descriptor, max(size_bytes, os.fstat(self.descriptor).st_size))
        return memoryview(self._map)

    def used(self, size_bytes: int) -> None:
        """Note that a batch with so many bytes is over; gives memory back that is not usually needed."""
        if self._use.gives_back(size_bytes) and self._map is not None and hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Let go of it; idempotent. Views stay valid."""
        self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
