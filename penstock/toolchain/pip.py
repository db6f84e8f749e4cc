"""What pip says while it installs, as progress; and what its failures mean, as our errors. Runs nothing itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import MissingToolchain, PenstockError, StorageError, Unavailable
from penstock.toolchain.call import Progress
from penstock.toolchain.child_process import Log
from penstock.toolchain.definitions import Toolchain
from penstock.toolchain.lock import Lock, normalized

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_FETCHED_SHARE = 0.6  # of the time, fetching; the rest is unpacking
_UNPACKED_SHARE = 0.95
_NAMES_SHOWN = 8

_COLLECTING = re.compile(r"^Collecting ([A-Za-z0-9._-]+)==(\S+)")
_PROCESSING = re.compile(r"^Processing (?:\S*/)?([A-Za-z0-9._]+)-([^-/\s]+)-\S+\.whl")  # a file on this machine
_FETCHING = re.compile(r"^\s*(?:Downloading|Using cached) (\S+) \(([^)]+)\)")
_INSTALLING = "Installing collected packages:"
_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ConnectionResetError|ProxyError|SSLError|"
    r"Network is unreachable|Max retries exceeded|Could not find a version|No matching distribution|HTTP error|"
    r"Failed to establish a new connection|Temporary failure in name resolution|Connection refused|Could not fetch URL"
)
_NO_TORCH = re.compile(r"No matching distribution found for torch\b|Could not find a version .* requirement torch\b")
_NOT_FOUND = "No matching distribution found"
_OTHER_HASH = re.compile(r"DO NOT MATCH THE HASHES")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


@dataclass(slots=True)
class PipRun:
    """One run of pip: packages seen so far, and the end of its output.

    Attributes:
        site: where packages appear as they are unpacked, one ``.dist-info`` directory each.
        status: pip's exit status; None when it took too long.
    """

    total: int
    report: Progress
    site: Path
    status: int | None = None
    collected: list[str] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    _line: str = ""
    _is_unpacking: bool = False
    _unpacked: int = -1

    @property
    def has_no_torch(self) -> bool:
        """Say whether pip failed because the configured indexes have no CPU build of torch."""
        return _NO_TORCH.search(self.log.text()) is not None

    def on_output(self, chunk: bytes) -> bool:
        """Take pip's stdout in; never the last word, which is its exit status."""
        self.log.add(chunk)
        *lines, self._line = (self._line + chunk.decode("utf-8", "replace")).split("\n")
        for line in lines:
            self._on_line(line)
        return False

    def on_log(self, chunk: bytes) -> None:
        """Take pip's stderr in. It tries an index that does not answer again and again, for half a minute."""
        self.log.add(chunk)
        if b"Retrying" in chunk:
            self._fetched("an index does not answer; trying again")

    def on_tick(self) -> None:
        """Say that pip still works: while it unpacks it is silent, for half a minute where torch is one of the
        packages.
        """
        if not self._is_unpacking:
            return
        unpacked = sum(1 for _ in self.site.glob("python*/site-packages/*.dist-info"))
        if unpacked != self._unpacked:
            self._unpacked = unpacked
            share = _FETCHED_SHARE + (_UNPACKED_SHARE - _FETCHED_SHARE) * min(1.0, unpacked / max(1, self.total))
            self.report(share, f"unpacked {unpacked} of {self.total} packages")

    def _on_line(self, line: str) -> None:
        if found := _COLLECTING.match(line) or _PROCESSING.match(line):
            self.collected.append(normalized(found[1]))
            self._fetched(f"{found[1]} {found[2]}")
        elif found := _FETCHING.match(line):
            self._fetched(f"{found[1]} ({found[2]})")
        elif line.startswith(_INSTALLING):
            self._is_unpacking = True
            self.on_tick()

    def _fetched(self, note: str) -> None:
        self.report(_FETCHED_SHARE * min(1.0, len(self.collected) / max(1, self.total)), note)


def failure(toolchain: Toolchain, locked: Lock, run: PipRun) -> PenstockError:
    """Return the error for a run that did not succeed: what is missing, and what to do."""
    said = run.log.text()
    name = toolchain.name
    if run.status is None:
        return Unavailable(f"toolchain {name}: pip did not finish in time and was stopped{run.log.tail()}")
    if _DISK_FULL.search(said):
        return StorageError(f"toolchain {name}: the disk is full; free some space and try again")
    if _OTHER_HASH.search(said):
        return MissingToolchain(
            f"toolchain {name}: an index offers a file that is not the one this lock names, so nothing was installed; "
            f"check the configured indexes (pip config list){run.log.tail()}"
        )
    if _NETWORK.search(said):
        # pip asks for one package after another, and stops at the first that it cannot find, or cannot fetch
        found = run.collected if _NOT_FOUND in said else run.collected[:-1]
        missing = [package for package in locked.packages if package not in found]
        extra = f" --extra-index-url {TORCH_CPU_INDEX}" if "torch" in missing else ""
        return Unavailable(
            f"toolchain {name}: pip found {len(locked.packages) - len(missing)} of {len(locked.packages)} packages, "
            f"and not {_some(missing)}. Check the network and the configured indexes (pip config list). For a machine "
            f"without network, fetch them on one like it that has it: pip download --no-deps --require-hashes "
            f"--dest wheels{extra} --requirement {locked.path}; then here: PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels "
            f"penstock toolchain install {name}"
        )
    return MissingToolchain(f"toolchain {name}: pip could not install it{run.log.tail()}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown
