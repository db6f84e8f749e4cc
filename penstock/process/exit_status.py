"""What the exit status of a child process means, in words."""

from __future__ import annotations

import signal


def status_words(status: int) -> str:
    """Say what an exit status means, for a message; a negative one is a signal's number."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}" + (" (most likely out of memory)" if -status == signal.SIGKILL else "")
