"""Keeps a sample of requests with their answers, for training and for looking into: redacted, bounded in size and time.

Requests are drawn and copied on the event loop, and written in a thread, one Parquet file for each version and flush.
What finds no room, or a disk that is full, is dropped and counted; no request waits for it. How a file is written is
``cloud_core.observing.parquet_file``'s, what is left of a tensor ``cloud_core.policy.redaction``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cloud_core.observing.finished import Finished
from cloud_core.observing.parquet_file import Captured, write_rows
from cloud_core.observing.settings import CaptureSettings
from cloud_core.policy.redaction import redacted
from penstock.artifact.blobs import disk_errors
from penstock.process.telemetry import log
from penstock.wire.tensors import Array

SUFFIX = ".parquet"
_BESIDE_BYTES = 512  # of a request, beside its tensors
_STRING_BYTES = 64  # an array of strings knows the size of its pointers only
_LOG = logging.getLogger(__name__)


class Capture:
    """Draws, keeps and writes.

    Attributes:
        dropped: requests that were drawn and found no room, or could not be written.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        *,
        draw: Callable[[], float] = random.random,
        at: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Raises:
            StorageError: its directory cannot be written.
        """
        self.dropped = 0
        self._settings, self._draw, self._at = settings, draw, at
        self._directory = Path(settings.directory)
        with disk_errors(f"making {self._directory} for captured requests"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._waiting: list[Captured] = []
        self._waiting_bytes = 0
        self._is_full = asyncio.Event()
        self._files = 0

    def finished(self, request: Finished) -> None:
        """Keep a request for arrays, where it is drawn."""
        settings, asked = self._settings, request.request
        if asked is None or self._draw() >= settings.share:
            return
        answered = request.response.outputs if request.response is not None else {}
        size_bytes = _BESIDE_BYTES + sum(map(_size_bytes, (*asked.inputs.values(), *answered.values())))
        if self._waiting_bytes + size_bytes > settings.max_waiting_bytes:
            self.dropped += 1
            return
        self._waiting.append(
            Captured(
                at=self._at(),
                request=request,
                inputs=redacted(asked.inputs, request.model, drop=settings.drop, hashed=settings.hash),
                outputs=redacted(answered, request.model, drop=settings.drop, hashed=settings.hash),
            )
        )
        self._waiting_bytes += size_bytes
        if self._waiting_bytes > settings.max_waiting_bytes // 2:
            self._is_full.set()

    async def run(self) -> None:
        """Write what waits, every now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_full.wait(), self._settings.flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what waits, and remove what is too old or too much."""
        self._is_full.clear()
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        await asyncio.to_thread(self._write, waiting)

    def _write(self, waiting: list[Captured]) -> None:
        by_version: dict[tuple[str, str], list[Captured]] = {}
        for one in waiting:
            by_version.setdefault((one.request.model, one.request.version), []).append(one)
        for (model, version), found in by_version.items():
            try:
                write_rows(self._directory / self._name(model, version, found[0].at), found)
            except Exception as error:  # a full disk, values that make no column; nothing of it may end the core
                self.dropped += len(found)
                log(_LOG, logging.WARNING, "captured requests are lost", model=model, error=str(error))
        with contextlib.suppress(OSError):  # somebody else cleans up, too
            self._remove_old()

    def _name(self, model: str, version: str, at: datetime) -> str:
        self._files += 1
        safe = f"{model}-{version}".replace("/", "_").replace(":", "_")
        return f"{safe}-{at:%Y%m%dT%H%M%S%f}-{self._files}{SUFFIX}"

    def _remove_old(self) -> None:
        """Keep within ``keep_s`` and ``max_bytes``: the oldest files go first."""
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._directory.glob(f"*{SUFFIX}"))
        total = sum(size for _, size, _ in files)
        oldest = time.time() - self._settings.keep_s
        for written_at, size, path in files:
            if total <= self._settings.max_bytes and written_at >= oldest:
                return
            path.unlink(missing_ok=True)
            total -= size


def _size_bytes(array: Array) -> int:
    return array.nbytes + (array.size * _STRING_BYTES if array.dtype.kind == "O" else 0)
