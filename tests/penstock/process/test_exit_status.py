"""Exit statuses in words."""

from __future__ import annotations

import signal

from penstock.process.exit_status import status_words


def test_being_killed_hints_at_memory() -> None:
    assert status_words(-signal.SIGKILL) == "killed by SIGKILL (most likely out of memory)"
    assert status_words(-64) == "killed by SIGRTMAX"
    assert status_words(-99) == "killed by signal 99"


def test_an_orderly_end_is_a_number() -> None:
    assert status_words(9) == "exit status 9"
