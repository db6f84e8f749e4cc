"""Progress of a compilation: what is being done, how far it is, and a line with its time and outcome when it is done.

Owns the words; where they are shown is a :class:`Watcher`'s business: lines on a pipe, a live bar on a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and a short note."""


def unwatched(share: float, note: str) -> None:
    """Take progress that nothing watches; a :data:`Progress`."""


class Watcher(Protocol):
    """Whoever shows the progress of a compilation."""

    def started(self, name: str) -> None: ...

    def advanced(self, share: float, note: str) -> None:
        """Show that ``share`` of the running step is done, 0 to 1."""
        ...

    def finished(self, line: str) -> None: ...


class Lines:
    """A watcher for pipes and logs: one line a finished step, none for what happens inside it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def started(self, name: str) -> None:
        """Say nothing yet: a step is told when it is done."""

    def advanced(self, share: float, note: str) -> None:
        """Say nothing yet: a step is told when it is done."""

    def finished(self, line: str) -> None:
        self._say(line)


class Doing:
    """The step under way: passes report to it, and add what is worth a reader's time."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.notes: list[str] = []
        self._took: list[bool] = []

    @property
    def was_cached(self) -> bool:
        """Say whether everything that the step took was found, and nothing made."""
        return bool(self._took) and all(self._took)

    def took(self, *, was_cached: bool) -> None:
        """Record that a part of the step was found, or made."""
        self._took.append(was_cached)

    def note(self, text: str) -> None:
        """Keep words to show behind the step's name when it is done."""
        if text:
            self.notes.append(text)

    def advance(self, share: float, note: str) -> None:
        """Take progress of a pass, as a :data:`Progress`."""
        self._watcher.advanced(min(max(share, 0.0), 1.0), note)


@contextmanager
def step(watcher: Watcher, name: str) -> Iterator[Doing]:
    """Announce a step, time it, and say how it went. Nothing is said of a step that raises: the error says it."""
    began = time.perf_counter()
    doing = Doing(watcher)
    watcher.started(name)
    yield doing
    seconds = "  kept " if doing.was_cached else f"{time.perf_counter() - began:5.1f} s"
    watcher.finished(f"{name:<34} {seconds}  {'; '.join(doing.notes)}".rstrip())
