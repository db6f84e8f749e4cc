"""Toolchain program for tests: our builder, in a process in which every attempt to reach a network is an error."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "compiler" / "runners"))

import genai_build
from protocol import serve


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"reached for the network: {args}")


def build(job: dict[str, Any]) -> dict[str, Any]:
    socket.socket.connect = _refuse  # type: ignore[method-assign]
    socket.getaddrinfo = _refuse
    return genai_build.build(job)


if __name__ == "__main__":
    serve(build)
