"""What Penstock costs before it does anything: the SDK's import against what it stands on, and ``penstock --help``.

Minima of interleaved runs: the cheapest run of each is the one that the machine disturbed least.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec

_TIMED = "import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"


class Startup(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: importing the SDK's client, numpy and grpc alone, and ``penstock --help`` from start to end."""

    import_client_s: float
    import_numpy_grpc_s: float
    help_s: float


def measure(rounds: int) -> Startup:
    """Interleave ``rounds`` runs of each in new interpreters."""
    client, alone, shown = [], [], []
    for _ in range(rounds):
        alone.append(_import_s("import numpy, grpc"))
        client.append(_import_s("from penstock import Client"))
        shown.append(_help_s())
    return Startup(import_client_s=min(client), import_numpy_grpc_s=min(alone), help_s=min(shown))


def _import_s(statement: str) -> float:
    command = [sys.executable, "-c", _TIMED.format(statement=statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _help_s() -> float:
    script = Path(sys.executable).parent / "penstock"
    began = time.perf_counter()
    subprocess.run([str(script), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
