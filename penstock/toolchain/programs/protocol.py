"""How a runner talks to the process that started it: a JSON job file in, JSON lines out, everything else to stderr.

A runner is a plain program for another Python environment (a toolchain), started as ``python RUNNER.py JOB.json``. It
imports the standard library, its toolchain's packages and this module, which is on its path. On stdout it may write
``{"progress": 0.4, "note": "epoch 3"}`` any number of times, then exactly one ``{"result": {...}}``, or
``{"error": {"kind": "input" | "failed", "message": "..."}}`` with exit status 1. :func:`serve` sees to all of that; the
other end is ``penstock.toolchain.call``. Does not decide what a job is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

MAX_MESSAGE_CHARS = 4000
MAX_QUOTED_CHARS = 600  # of a library's own words
WATCH_STDIN = "PENSTOCK_RUNNER_WATCHES_STDIN"  # set by the caller, which holds the other end of stdin open
_EXIT_ORPHAN = 70

_wire: TextIO | None = None


class InputError(Exception):
    """The job is wrong in a way that its author can mend; the message says what was expected and what to do."""


def progress(share: float, note: str = "") -> None:
    """Say how far the job is: ``share`` of it is done, 0 to 1; ``note`` is a few words."""
    _write({"progress": round(float(share), 4), "note": note})


def serve(function: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read the job named on the command line, run ``function`` on it, write its result or its error, and exit.

    Whatever libraries print on stdout, from Python or from native code, goes to stderr.
    """
    global _wire
    _wire = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if os.environ.get(WATCH_STDIN):
        threading.Thread(target=_die_with_caller, daemon=True).start()
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            job = json.load(file)
        line = json.dumps({"result": function(job)}, allow_nan=False)
    except InputError as error:
        _fail("input", str(error))
    except BaseException as error:  # a library's SystemExit too: the caller must always get an answer
        traceback.print_exc(file=sys.stderr)
        _fail("failed", "".join(traceback.format_exception_only(error)).strip())
    else:
        _wire.write(line + "\n")
        _wire.flush()


def short(error: BaseException) -> str:
    """Say a library's error in one line, for a message of ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_QUOTED_CHARS]}"


def _fail(kind: str, message: str) -> None:
    _write({"error": {"kind": kind, "message": message[-MAX_MESSAGE_CHARS:]}})
    sys.exit(1)


def _write(message: dict[str, Any]) -> None:
    if _wire is not None:  # a function under test, called without serve, has nobody to talk to
        _wire.write(json.dumps(message) + "\n")
        _wire.flush()


def _die_with_caller() -> None:
    """End with the caller, however it ended: its end of our stdin closes even when it was killed."""
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    os._exit(_EXIT_ORPHAN)
