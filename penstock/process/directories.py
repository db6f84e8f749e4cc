"""Where files of a user are, by the XDG rules; also for users that have no home, as in many containers.

A container's user is often a number without an entry in passwd, with no HOME, or with HOME=/ on a disk that cannot be
written. Settings and data then have to be given a place; a cache finds one below the directory for temporary files.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import ConfigError


def config_directory(environment: Mapping[str, str]) -> Path:
    """Return ``XDG_CONFIG_HOME/penstock``, or ``~/.config/penstock``.

    Raises:
        ConfigError: there is no home.
    """
    return _below_home(environment, "XDG_CONFIG_HOME", ".config")


def data_directory(environment: Mapping[str, str]) -> Path:
    """Return ``XDG_DATA_HOME/penstock``, or ``~/.local/share/penstock``.

    Raises:
        ConfigError: there is no home.
    """
    return _below_home(environment, "XDG_DATA_HOME", ".local/share")


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Return ``XDG_CACHE_HOME/penstock``, or ``~/.cache/penstock``, or where that cannot be written a directory of this
    user's below that for temporary files, which is made.

    Raises:
        ConfigError: somebody else has made it, or there is no place at all.
    """
    named = _named(environment, "XDG_CACHE_HOME")
    if named is not None:
        return named / "penstock"
    home = _home(environment)
    if home is not None and _can_hold(home / ".cache" / "penstock"):
        return home / ".cache" / "penstock"
    try:
        directory = Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise ConfigError(f"no place for a cache ({error}); set XDG_CACHE_HOME to a directory") from error
    # anybody could have put a directory of that name there, and with it what a later step would trust
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(f"{directory} is not this user's alone; remove it, or set XDG_CACHE_HOME to a directory")
    return directory


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` filled in, absolute.

    Raises:
        ConfigError: there is no such home.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no home directory that ~ could stand for; write the whole path") from error


def _below_home(environment: Mapping[str, str], variable: str, usual: str) -> Path:
    base = _named(environment, variable)
    if base is None:
        home = _home(environment)
        if home is None:
            raise ConfigError(f"this user has no home directory: set HOME or {variable}")
        base = home / usual
    return base / "penstock"


def _named(environment: Mapping[str, str], variable: str) -> Path | None:
    value = environment.get(variable, "")
    return Path(value) if value.startswith("/") else None  # XDG: others are to be ignored


def _home(environment: Mapping[str, str]) -> Path | None:
    if environment.get("HOME", "").startswith("/"):
        return Path(environment["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _can_hold(directory: Path) -> bool:
    """Say whether this process may write in a directory, or make it."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return os.access(directory, os.W_OK | os.X_OK)
