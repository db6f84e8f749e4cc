"""Follows how inputs, scores and predictions of each version are distributed, and says when that has shifted.

Picks columns on the event loop (a copy of few numbers), counts them in a thread. Compared is with a reference: the one
that the artifact carries, or else the first rows that were served, which is said. What a shift is, is
``penstock.policy.distributions``'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_core.observing.finished import Finished
from cloud_core.observing.settings import DriftSettings
from penstock.artifact.row_reference import MAX_FEATURES, Reference
from penstock.policy.distributions import Column, Distance, Numbers, binned, described, distance
from penstock.policy.row_features import Taken, columns, taken, widths_of
from penstock.process.telemetry import log

_LOG = logging.getLogger(__name__)
_MAX_EVENTS = 100
_MAX_WAITING_BYTES = 64 * 1024 * 1024  # scores of many classes are large

Rows = dict[str, Numbers]
Key = tuple[str, str]


@dataclass(slots=True)
class _Waiting:
    """What was taken of one request, and is not counted yet."""

    key: Key
    copies: Taken
    widths: dict[str, int]
    rows: int
    size_bytes: int


@dataclass(slots=True)
class _Followed:
    """One version.

    Attributes:
        source: what it is compared with, in words; "" while that is being collected.
        first: rows of which a reference will be made.
        columns: the reference, by name.
        now: counts of the window under way; ``before`` of the one before that.
        shifted: names of columns that have.
    """

    source: str = ""
    first: list[Rows] = field(default_factory=list)
    first_rows: int = 0
    columns: dict[str, Column] = field(default_factory=dict)
    now: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    before: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    now_rows: int = 0
    shifted: set[str] = field(default_factory=set)


class Drift:
    """Everything that is followed.

    Attributes:
        skipped: rows that found no room to wait.
        events: the last times that a column shifted or came back, oldest first.
    """

    def __init__(
        self,
        settings: DriftSettings,
        reference_of: Callable[[str, str], Reference | None],
        *,
        at: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``reference_of``: what the artifact of a model's version carries; called in a thread."""
        self.skipped = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._settings, self._reference_of, self._at = settings, reference_of, at
        self._waiting: list[_Waiting] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._followed: dict[Key, _Followed] = {}
        self._has_news = asyncio.Event()

    def finished(self, request: Finished) -> None:
        """Pick what is followed of a request that was answered."""
        asked, answered = request.request, request.response
        if asked is None or answered is None or not request.rows:
            return
        rows, inputs, outputs = request.rows, asked.inputs, answered.outputs
        if self._waiting_rows + rows > self._settings.max_waiting_rows or self._waiting_bytes > _MAX_WAITING_BYTES:
            self.skipped += rows
            return
        copies = taken(inputs, outputs, rows, max_features=MAX_FEATURES)
        size_bytes = sum([array.nbytes for array in copies.values()])
        key = (request.model, request.version)
        self._waiting.append(_Waiting(key, copies, widths_of(outputs, inputs), rows, size_bytes))
        self._waiting_rows += rows
        self._waiting_bytes += size_bytes
        self._has_news.set()

    async def run(self) -> None:
        """Count what was picked, every now and then."""
        while True:
            await self._has_news.wait()
            await asyncio.sleep(self._settings.look_every_s)
            await asyncio.to_thread(self._count_all, self._take())

    def fold(self) -> None:
        """Count what waits, here and now; harmless at any time."""
        self._count_all(self._take())

    def _take(self) -> list[_Waiting]:
        """Take what waits out, on the event loop: the thread that counts it changes nothing that requests look at."""
        self._has_news.clear()
        waiting, self._waiting = self._waiting, []
        self._waiting_rows = self._waiting_bytes = 0
        return waiting

    def _count_all(self, waiting: list[_Waiting]) -> None:
        for one in waiting:
            try:
                self._count(one.key, columns(one.copies, one.widths, max_features=MAX_FEATURES), one.rows)
            except Exception as error:  # a defect of ours in looking on must not end the core that answers
                self.skipped += one.rows
                log(_LOG, logging.ERROR, "rows cannot be followed", exc_info=error, model=one.key[0])

    def documents(self) -> list[dict[str, Any]]:
        """Say how each version's columns do, the largest shift first."""
        return [self._document(key, followed) for key, followed in sorted(self._followed.items())]

    def distances(self) -> dict[Key, dict[str, Distance]]:
        """Compare each version that has a reference with it."""
        return {key: _distances(followed) for key, followed in tuple(self._followed.items()) if followed.source}

    def shifted(self, key: Key) -> frozenset[str]:
        """Name the columns of a version that have shifted."""
        followed = self._followed.get(key)
        return frozenset() if followed is None else frozenset(followed.shifted)

    def _count(self, key: Key, picked: Rows, rows: int) -> None:
        followed = self._followed.get(key)
        if followed is None:
            if len(self._followed) >= self._settings.max_versions:
                self._followed.pop(next(iter(self._followed)))
            followed = self._followed[key] = _Followed()
            reference = self._reference_of(*key)
            if reference is not None:
                followed.source = f"the evaluation of the artifact, {reference.rows} rows"
                followed.columns = {column.name: column for column in reference.columns}
        if not followed.source:
            self._collect(followed, picked, rows)
            return
        for name, column in followed.columns.items():
            if name in picked:
                counts = binned(column, picked[name])
                followed.now[name] = followed.now[name] + counts if name in followed.now else counts
        followed.now_rows += rows
        self._look(key, followed)
        if followed.now_rows >= self._settings.window_rows:
            followed.before, followed.now, followed.now_rows = followed.now, {}, 0

    def _collect(self, followed: _Followed, picked: Rows, rows: int) -> None:
        followed.first.append(picked)
        followed.first_rows += rows
        if followed.first_rows < self._settings.reference_rows:
            return
        names = [name for name in followed.first[0] if all(name in one for one in followed.first)]
        followed.columns = {
            name: described(name, np.concatenate([one[name] for one in followed.first])) for name in names
        }
        followed.source = f"the first {followed.first_rows} rows served"
        followed.first = []

    def _look(self, key: Key, followed: _Followed) -> None:
        for name, found in _distances(followed).items():
            is_shift = found.rows >= self._settings.min_rows and found.is_shift(self._settings.psi_limit)
            if is_shift == (name in followed.shifted):
                continue
            (followed.shifted.add if is_shift else followed.shifted.discard)(name)
            self._tell(key, name, found, is_shift=is_shift)

    def _tell(self, key: Key, name: str, found: Distance, *, is_shift: bool) -> None:
        model, version = key
        facts: dict[str, Any] = {"model": model, "version": version, "feature": name, "psi": found.psi}
        self.events.append({"at": self._at(), **facts, "is_shift": is_shift})
        if is_shift:
            log(_LOG, logging.WARNING, "drift", rows=found.rows, **facts)
        else:
            log(_LOG, logging.INFO, "drift is over", rows=found.rows, **facts)

    def _document(self, key: Key, followed: _Followed) -> dict[str, Any]:
        found = sorted(_distances(followed).items(), key=lambda pair: -pair[1].psi)
        return {
            "model": key[0],
            "version": key[1],
            "reference": followed.source
            or f"being collected: {followed.first_rows} of {self._settings.reference_rows} rows",
            "rows": max((one.rows for _, one in found), default=0),
            "shifted": sorted(followed.shifted),
            "features": [
                {"feature": name, "psi": one.psi, "kl": one.kl, "by_chance": _finite(one.by_chance), "rows": one.rows}
                for name, one in found
            ],
        }


def _distances(followed: _Followed) -> dict[str, Distance]:
    found = {}
    for name, column in followed.columns.items():
        counts = [window[name] for window in (followed.before, followed.now) if name in window]
        if counts:
            found[name] = distance(column.counts, np.sum(counts, axis=0).tolist())
    return found


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
