"""A live bar on a terminal for long work: what runs, how far it is, the time left, and a line for each step done."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_NOTE_WIDTH = 60


class LiveBar:
    """One bar for the step under way, on stderr; to be used as a context, which takes it off the screen at the end."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._tasks: list[TaskID] = []

    def __enter__(self) -> LiveBar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def started(self, name: str) -> None:
        """Show that a step begins; its length is unknown until it reports."""
        self._tasks.append(self._progress.add_task(name, total=None, note=""))

    def advanced(self, share: float, note: str) -> None:
        """Show that ``share`` of the running step is done, 0 to 1."""
        if self._tasks:
            self._progress.update(self._tasks[-1], total=1.0, completed=share, note=note[:_NOTE_WIDTH])

    def finished(self, line: str) -> None:
        """Show that the running step is done; ``line`` stays on the screen."""
        if self._tasks:
            self._progress.remove_task(self._tasks.pop())
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
