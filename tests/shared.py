"""What is expensive to make is made once a run: the workers of pytest-xdist share it, and the first one makes it."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

Made = TypeVar("Made")


def run_directory(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a directory of that name which all workers of this run see, and no other run."""
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    directory.mkdir(exist_ok=True)
    return directory


def kept_directory(config: pytest.Config, factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a directory that later runs see too; without pytest's cache it is one of this run."""
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    return run_directory(factory, name) if cache is None else cache.mkdir(name)


@contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """Hold back every other worker that wants to make something in the same directory."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(directory: Path, make: Callable[[], Made]) -> Made:
    """Return what ``make()`` returned to the first worker that asked with this directory; it can be pickled."""
    file = directory / "made.pickle"
    with one_at_a_time(directory):
        if not file.exists():
            content = pickle.dumps(make())
            file.write_bytes(content)
    made: Made = pickle.loads(file.read_bytes())
    return made
