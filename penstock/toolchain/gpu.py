"""Whether this machine has an NVIDIA driver, without starting it: for refusals before anything is downloaded."""

from __future__ import annotations

import ctypes
import sys

DRIVER_LIBRARY = "libcuda.so.1"


def driver_problem(library: str = DRIVER_LIBRARY) -> str | None:
    """Say why nothing here can run on an NVIDIA GPU; None if something can. Loads the driver's library and calls
    nothing in it.
    """
    if not sys.platform.startswith("linux"):
        return f"it needs an NVIDIA GPU on Linux, and this is {sys.platform}"
    try:
        ctypes.CDLL(library)
    except OSError:
        return (
            f"no NVIDIA driver ({library} is not found); it needs a machine with an NVIDIA GPU and its driver "
            "(in a container: start it with the NVIDIA container toolkit, --gpus all)"
        )
    return None
