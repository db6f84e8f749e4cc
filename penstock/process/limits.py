"""Limits that a process sets itself before it does what others made: to run a model that asks for too much memory."""

from __future__ import annotations

import resource
from pathlib import Path


def limit_memory(more_bytes: int) -> None:
    """Let this process take so many bytes beside what it has now; what goes beyond fails to be allocated.

    Counts addresses, not what is resident. It cannot be undone, and children inherit it.
    """
    limit = _virtual_bytes() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _virtual_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmSize:"))
