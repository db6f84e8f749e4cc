"""Waits for a server that was just started: what a command asks is asked again until it is as it should be."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from penstock.errors import DeadlineExceeded, Unavailable

_T = TypeVar("_T")
_PATIENCE_S = 60.0
_PAUSE_S = 0.1


def wait_option(until: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--wait``, passed on as ``waits``; ``until`` says what is waited for."""
    return click.option("--wait", "waits", is_flag=True, help=f"Wait until {until}, {_PATIENCE_S:.0f} s at most.")


def patiently(ask: Callable[[], _T], is_enough: Callable[[_T], bool], *, waits: bool) -> _T:
    """Return what ``ask`` gives; where ``waits``, ask until it is enough.

    Raises:
        DeadlineExceeded: it was not in time; the message says what there was. PenstockError: what ``ask`` raises.
    """
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        why = "it answers, and is not ready"
        try:
            answer = ask()
            if not waits or is_enough(answer):
                return answer
        except Unavailable as error:
            if not waits:
                raise
            why = error.message
        if time.monotonic() >= give_up:
            raise DeadlineExceeded(f"not ready within {_PATIENCE_S:.0f} s: {why}")
        time.sleep(_PAUSE_S)
