"""The umbrella command ``penstock``. Rooms plug in by entry point and load only when their word is used."""

from __future__ import annotations

import os
import signal


def _end(number: int, _: object) -> None:
    os._exit(128 + number)


if os.getpid() == 1:
    # The system ignores what process 1 has no handler for: a container that is stopped while it loads would be killed
    # after the grace period. So this comes before anything that takes time to import
    signal.signal(signal.SIGTERM, _end)

from penstock.cli.main import main  # noqa: E402  # see above

__all__ = ["main"]
