"""Installing and removing toolchains: a virtual environment and pip, in one atomic step under a lock.

An installation is made in a temporary directory beside its place and renamed into it when it is complete; its stamp is
written before that. Whatever interrupts it leaves the old toolchain, or none. One process at a time works on a
toolchain; others wait for it. pip's own configuration (indexes, proxies, certificates) is honoured. Does not decide
which packages: that is the lock.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock import wording
from penstock.artifact.blobs import disk_errors
from penstock.errors import MissingToolchain, StorageError, Unavailable
from penstock.toolchain import child_process, gpu, locations, lock
from penstock.toolchain.call import Progress, ignore_progress
from penstock.toolchain.definitions import Toolchain, find
from penstock.toolchain.lock import Lock
from penstock.toolchain.pip import TORCH_CPU_INDEX, PipRun, failure

MAX_WAIT_S = 1800.0  # for another process that installs the same toolchain
_INSTALL_TIMEOUT_S = 3600.0
_VENV_TIMEOUT_S = 300.0
_LOCK_POLL_S = 0.5
_MAX_SCRIPT_BYTES = 1024 * 1024
_CHECKING_SHARE = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What :func:`install` did.

    Attributes:
        was_there: it was installed and current already, so nothing was done.
    """

    name: str
    directory: Path
    packages: int
    size_bytes: int
    was_there: bool


def install(
    name: str, *, report: Progress = ignore_progress, force: bool = False, max_wait_s: float = MAX_WAIT_S
) -> Installed:
    """Install toolchain ``name``, unless it is there and current.

    Args:
        report: called with the share done and what is being done.
        force: install it again even if it is current.
        max_wait_s: how long to wait for another process that works on it.

    Raises:
        InvalidInput: no such toolchain.
        MissingToolchain: it cannot be installed here (wrong Python, no GPU, pip's refusal); the message says why.
        Unavailable: packages cannot be reached, or another process holds the lock for too long.
        StorageError: not enough space, or not writable.
    """
    toolchain = find(name)
    locked = lock.lock_of(toolchain)
    refuse_if_impossible(toolchain, locked)
    root = locations.root()
    with disk_errors(f"creating {root}"):
        root.mkdir(parents=True, exist_ok=True)
    with _exclusive(root, name, report, max_wait_s) as lock_file:
        directory = root / name
        if not force and (stamp := _current(toolchain, locked, directory)) is not None:
            return _installed(name, directory, stamp, was_there=True)
        _refuse_if_full(root, locked)
        _sweep(root, name)
        return _installed(name, directory, _replace(toolchain, locked, directory, report, lock_file), was_there=False)


def remove(name: str, *, max_wait_s: float = MAX_WAIT_S) -> int:
    """Remove an installed toolchain, and what interrupted installations of it left; the bytes it occupied.

    Raises:
        InvalidInput: no such toolchain. Unavailable: another process works on it. StorageError: the disk said no.
    """
    find(name)
    root = locations.root()
    if not root.is_dir():
        return 0
    with _exclusive(root, name, ignore_progress, max_wait_s):
        directory = root / name
        freed = size_of(directory)
        if directory.exists():
            with disk_errors(f"removing {directory}"):
                directory.rename(Path(tempfile.mkdtemp(prefix=_prefix(name), dir=root)) / name)
        _sweep(root, name)
        return freed


def refuse_if_impossible(toolchain: Toolchain, locked: Lock) -> None:
    """Refuse a toolchain that cannot work here, before anything is downloaded.

    Raises:
        MissingToolchain: the lock does not cover this interpreter, or it needs a GPU and there is none.
    """
    if toolchain.needs_gpu and (reason := gpu.driver_problem()) is not None:
        raise MissingToolchain(f"toolchain {toolchain.name} cannot be used here: {reason}")
    here = lock.this_environment()
    if locked.environments and here not in locked.environments:
        raise MissingToolchain(
            f"toolchain {toolchain.name} is locked for {lock.environment_words(locked.environments)}; this is Python "
            f"{platform.python_version()} ({here}). Run penstock with one of those, or make an environment of your own "
            f"with {' '.join(toolchain.requirements)} and set {toolchain.variable} to its interpreter"
        )


def size_of(directory: Path) -> int:
    """Count the bytes of all files below; 0 where there is no such directory."""
    total = 0
    for path, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # removed meanwhile
                total += os.lstat(os.path.join(path, name)).st_size
    return total


# --- one process at a time ---------------------------------------------------------------------------------------


@contextmanager
def _exclusive(root: Path, name: str, report: Progress, max_wait_s: float) -> Iterator[int]:
    """Hold the toolchain's lock file; its descriptor, which pip inherits so that an orphaned pip holds it too.

    Raises:
        Unavailable: it was not to be had within ``max_wait_s``.
    """
    path = root / f"{_prefix(name)}lock"
    with disk_errors(f"locking {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + max_wait_s
        has_said = False
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"another process has been working on toolchain {name} for more than {max_wait_s:g} s; "
                    "try again when it is done",
                    retry_after_s=_LOCK_POLL_S,
                )
            if not has_said:
                report(0.0, f"waiting for another process that works on toolchain {name}")
                has_said = True
            time.sleep(min(_LOCK_POLL_S, max(0.0, deadline - time.monotonic())))
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prefix(name: str) -> str:
    """Return the beginning of hidden names beside the toolchain; the dot at the end keeps ``tensorrt`` and ``tensorrt-
    rtx`` apart.
    """
    return f".{name}."


def _sweep(root: Path, name: str) -> None:
    """Remove what interrupted installations left; whoever made it is gone, because we hold the lock."""
    for path in root.glob(f"{_prefix(name)}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


# --- one installation --------------------------------------------------------------------------------------------


def _current(toolchain: Toolchain, locked: Lock, directory: Path) -> locations.Stamp | None:
    stamp = locations.read_stamp(directory)
    is_current = stamp is not None and stamp.lock == locked.digest and locations.python_in(directory).is_file()
    return stamp if is_current else None


def _installed(name: str, directory: Path, stamp: locations.Stamp, *, was_there: bool) -> Installed:
    return Installed(
        name=name,
        directory=directory,
        packages=len(stamp.packages),
        size_bytes=stamp.size_bytes,
        was_there=was_there,
    )


def _replace(toolchain: Toolchain, locked: Lock, directory: Path, report: Progress, lock_file: int) -> locations.Stamp:
    """Make it in a temporary directory, then put it in its place; the directory vanishes on any error."""
    root = directory.parent
    with disk_errors(f"creating a directory in {root}"):
        scratch = Path(tempfile.mkdtemp(prefix=_prefix(toolchain.name), dir=root))
    try:
        fresh = scratch / "new"
        report(0.0, "creating an environment")
        _make_venv(fresh)
        _fill(toolchain, locked, fresh, report, lock_file)
        report(_CHECKING_SHARE, "checking")
        stamp = _stamp(toolchain, locked, fresh)
        with disk_errors(f"installing to {directory}"):
            _point_scripts_to(directory, fresh)
            (fresh / locations.STAMP).write_bytes(msgspec.json.encode(stamp))
            if directory.exists():
                directory.rename(scratch / "old")
            fresh.rename(directory)
        return stamp
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_venv(directory: Path) -> None:
    """Make an environment, without pip where ours can be used for it, which saves seconds; with pip's bundled copy
    otherwise.

    Raises:
        MissingToolchain: the interpreter cannot make one.
    """
    command = [sys.executable, "-I", "-m", "venv", *(["--without-pip"] if _has_pip() else []), str(directory)]
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=_VENV_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        raise MissingToolchain(
            f"{sys.executable} cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv): "
            f"{(error.stderr or error.stdout).strip()[-500:]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MissingToolchain(f"making a virtual environment took more than {_VENV_TIMEOUT_S:g} s") from error


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _fill(toolchain: Toolchain, locked: Lock, fresh: Path, report: Progress, lock_file: int) -> None:
    """Let pip install the lock's packages.

    Raises:
        MissingToolchain, Unavailable, StorageError: pip could not install everything.
    """
    first = _pip(locked, fresh, report, lock_file)
    if first.status != 0 and first.has_no_torch:
        first = _pip(locked, fresh, report, lock_file, "--extra-index-url", TORCH_CPU_INDEX)
    if first.status != 0:
        raise failure(toolchain, locked, first)


def _pip(locked: Lock, fresh: Path, report: Progress, lock_file: int, *options: str) -> PipRun:
    python = locations.python_in(fresh)
    pip = [sys.executable, "-s", "-m", "pip", "--python", str(python)] if _has_pip() else [str(python), "-m", "pip"]
    # wheels only: building a source package would run its code with packages that no lock names
    strict = ["--require-hashes", "--no-deps", "--only-binary", ":all:"] if locked.environments else []
    run = PipRun(total=len(locked.packages), report=report, site=fresh / "lib")
    run.status = child_process.run(
        [*pip, "--disable-pip-version-check", "--no-input", "install", "--progress-bar", "off", "--no-compile",
         *strict, *options, "--requirement", str(locked.path)],
        environment=_pip_environment(),
        on_output=run.on_output,
        on_log=run.on_log,
        on_tick=run.on_tick,
        timeout_s=_INSTALL_TIMEOUT_S,
        inherited_files=(lock_file,),
    )  # fmt: skip
    return run


def _pip_environment() -> dict[str, str]:
    """Return the user's configuration of pip, but for what would send packages elsewhere or ask for other ones."""
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_PYTHON")
    kept = {name: value for name, value in child_process.scrubbed(os.environ).items() if name not in elsewhere}
    return {**kept, "PIP_USER": "0"}


def _stamp(toolchain: Toolchain, locked: Lock, fresh: Path) -> locations.Stamp:
    """Return the stamp of what was installed, once it is found complete.

    Raises:
        MissingToolchain: the new environment does not run, or lacks a package that the lock names.
    """
    packages = locations.versions_in(locations.python_in(fresh), tuple(locked.packages))
    absent = sorted(set(locked.packages) - set(packages))
    if absent:
        raise MissingToolchain(f"toolchain {toolchain.name}: pip reported success, but {', '.join(absent)} is missing")
    return locations.Stamp(
        lock=locked.digest, python=platform.python_version(), packages=packages, size_bytes=size_of(fresh)
    )


def _point_scripts_to(directory: Path, fresh: Path) -> None:
    """Rewrite scripts, which name the interpreter they were installed with by a path that is about to change."""
    for script in (fresh / "bin").iterdir():
        if script.is_symlink() or not script.is_file() or script.stat().st_size > _MAX_SCRIPT_BYTES:
            continue
        text = script.read_bytes()
        moved = text.replace(os.fsencode(fresh), os.fsencode(directory))
        if moved != text:
            script.write_bytes(moved)


def _refuse_if_full(root: Path, locked: Lock) -> None:
    needed = locked.disk_bytes + locked.download_bytes
    free = shutil.disk_usage(root).free
    if free < needed:
        there = wording.size(free)
        raise StorageError(
            f"{root}: {there} are free and about {wording.size(needed)} are needed; "
            f"free some space, or set {locations.ROOT_VARIABLE} to a directory on another disk"
        )
