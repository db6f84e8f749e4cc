"""Gives memory that this process has freed back to the operating system.

The C library keeps what is freed for the next allocation: after one large request, some hundred megabytes of its body
and of its tensors. Returning it takes the library's lock for as long as that takes, so it is done after unusual
requests only, and not while one is being answered.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

TRIM_AFTER_S = 1.0
"""By then what the request took is freed: its answer is out."""


class Trimmer:
    """Trims once for all that ask within ``after_s``, in a thread of its own."""

    def __init__(self, trim: Callable[[], object], after_s: float = TRIM_AFTER_S) -> None:
        self._trim, self._after_s = trim, after_s
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def ask(self) -> None:
        """Trim soon; returns at once."""
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(self._after_s, self._run)
                self._timer.daemon = True  # nobody waits for it at the end
                self._timer.start()

    def _run(self) -> None:
        with self._lock:
            self._timer = None  # before it trims: what is freed from now on is another one's
        self._trim()


def _library_trim() -> Callable[[], object]:
    """Return glibc's ``malloc_trim``; other C libraries have none, and keep less or nothing."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda: None
    return lambda: malloc_trim(0)


TRIMMER = Trimmer(_library_trim())
"""The process's own: there is one heap."""
