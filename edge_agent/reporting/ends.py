"""Finds out at a start whether the agent before had flushed all its counts, and keeps count of those that had not.

Owns one small file in the data directory, which is written at a start and at an orderly end and never in between. Where
it says at a start that an agent runs, that one ended by a power cut, a kill or a crash: the counts since its last flush
are lost. How many they were nobody knows; for how long they were counted has a bound, and that is kept here.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from penstock.artifact.blobs import write_atomically
from penstock.errors import StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


class Ends(Struct, frozen=True, kw_only=True):
    """Holds how the agents of this data directory ended. A key of a later release is passed over.

    Attributes:
        unclean: how many ended without a last flush.
        max_lost_s: of counting that is missing for that, at the most, in all.
        running_flush_s: the interval between flushes of the agent that runs; 0 when none does.
    """

    unclean: int = 0
    max_lost_s: float = 0.0
    running_flush_s: float = 0.0


def begun(before: Ends, flush_s: float) -> Ends:
    """Take in that an agent starts; one that still runs, as it seems, is one that ended uncleanly."""
    return Ends(
        unclean=before.unclean + (before.running_flush_s > 0),
        max_lost_s=before.max_lost_s + before.running_flush_s,
        running_flush_s=flush_s,
    )


def ended(running: Ends) -> Ends:
    """Take in that an agent ends, and that all its counts are on the disk."""
    return replace(running, running_flush_s=0.0)


class EndsFile:
    """Keeps the ends on disk. A disk that takes no writes keeps no agent from starting, and is tried again."""

    def __init__(self, path: Path, flush_s: float) -> None:
        """Read the file; one that is not there, or damaged, says that nothing is known."""
        self._path = path
        before = _read(path)
        self.ends = begun(before, flush_s)
        self._is_begun = self._has_failed = False
        if before.running_flush_s:
            log(_log, logging.WARNING, "the agent before this one ended without a last flush: counts may be missing",
                max_lost_s=before.running_flush_s, unclean_ends=self.ends.unclean)  # fmt: skip

    def begin(self) -> None:
        """Make durable that an agent runs, where that is not done yet."""
        if not self._is_begun:
            self._is_begun = self._write(self.ends)

    def end(self) -> None:
        """Make durable that the agent ended in an orderly way. Call it when all counts are on the disk."""
        if self._is_begun:
            self._write(ended(self.ends))

    def _write(self, ends: Ends) -> bool:
        try:
            write_atomically(self._path, msgspec.json.encode(ends) + b"\n")
        except StorageError as error:
            if not self._has_failed:
                log(_log, logging.WARNING, "an unclean end may go unnoticed", error=error.message)
            self._has_failed = True
            return False
        return True


def _read(path: Path) -> Ends:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ends)
    except (OSError, msgspec.MsgspecError):
        return Ends()
