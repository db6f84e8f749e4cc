"""``python -m benchmarks.wear``: bytes that an agent writes in a day at one request a second and its default settings.

First each writer by itself: an hour of it on a clock that is set forward, with a fleet service that takes everything at
once. Then an agent as a whole, a real one, with its times divided and its requests multiplied by ``--speed``. Two
figures each: whole pages of files, and, with ``--loop`` (as root), what reached the device below an ext4 file system
of its own, journal included. Prints figures, asserts nothing.

A clock that is set forward hides what the system writes back between two flushes; ``--flushes N`` waits for N of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.servers import choose_pins, running
from edge_agent.policy.audit import MAX_AUDITS, Audit
from edge_agent.policy.model_state import Failure, ModelState, Release, Slot
from edge_agent.reporting.ends import EndsFile
from edge_agent.reporting.outbox import Outbox
from edge_agent.serving.counts import IntervalCounts
from edge_agent.settings import AgentSettings
from edge_agent.updates.store import Store
from penstock import Client
from penstock.wire.outcomes import OutcomeCounts

HOURS_A_DAY, HOUR_S = 24, 3600
STARTS_A_DAY = 1
_IMAGE_BYTES = 512 * 1024**2
_FIRST_MINUTES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Holds bytes a day.

    Attributes:
        files: of files, in whole pages; where a file system has no pages to write (tmpfs), as they were handed over.
        device: that reached the block device, journal included; None where it is not known.
    """

    files: float
    device: float | None = None

    def __add__(self, other: Written) -> Written:
        has_both = self.device is not None and other.device is not None
        return Written(
            files=self.files + other.files,
            device=(self.device or 0.0) + (other.device or 0.0) if has_both else None,
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wear", description=__doc__)
    parser.add_argument("--loop", action="store_true", help="write to an ext4 file system on a loop device (as root)")
    parser.add_argument("--speed", type=int, default=60, help="of the real agent (default 60); 0 leaves it out")
    parser.add_argument("--minutes", type=int, default=60, help="that the real agent lives through (default 60)")
    parser.add_argument("--flushes", type=int, default=0, help="of counts at their real pace (default 0: left out)")
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wear-")))
        disk = stack.enter_context(loop_device(scratch)) if options.loop else scratch
        found = writers(disk / "writers", device=device_of(disk) if options.loop else None)
        _print("writer", "files", "device", unit="MB a day")
        for name, written in found.items():
            _print(name, written.files, written.device)
        _print("all of them", *_figures(found))
        if options.flushes:
            slow = at_real_pace(disk / "slow", options.flushes, device=device_of(disk) if options.loop else None)
            _print(f"outcome counts, {options.flushes} flushes waited for", slow.files, slow.device)
        if options.speed:
            agent = whole_agent(scratch, disk, options.speed, options.minutes, is_on_loop=options.loop)
            _print(f"a real agent, {options.speed} times as fast", agent.files, agent.device)
    return 0


def writers(directory: Path, *, device: Path | None = None) -> dict[str, Written]:
    """Return bytes a day by writer, each measured for an hour (starts and stops: for a day).

    Args:
        device: statistics of the block device below ``directory``, as ``/sys/dev/block/*/stat`` has them.
    """
    directory.mkdir()
    settings = AgentSettings()

    clock = _Clock()
    outbox = Outbox(directory / "outbox.sqlite", settings.outbox, now=lambda: clock.now)
    store = Store(directory)
    _count_for_an_hour(outbox, clock, settings)  # a log that is new has to grow first
    _audit_for_an_hour(store, settings)
    found = {
        "outcome counts": _times(HOURS_A_DAY, lambda: _count_for_an_hour(outbox, clock, settings), device),
        "state of a model, audited": _times(HOURS_A_DAY, lambda: _audit_for_an_hour(store, settings), device),
        "starts and stops": _times(STARTS_A_DAY, lambda: _start_and_stop(directory, settings), device),
    }
    outbox.close()
    return found


def at_real_pace(directory: Path, flushes: int, *, device: Path | None = None) -> Written:
    """Return bytes a day of outcome counts, measured over so many flushes with the time between them."""
    directory.mkdir()
    settings = AgentSettings()
    flush_s = settings.outbox.flush_s
    outbox = Outbox(directory / "outbox.sqlite", settings.outbox, now=time.monotonic)
    clock = _Clock()
    _count_for_an_hour(outbox, clock, settings)  # a log that is new has to grow first

    def work() -> None:
        for _ in range(flushes):
            time.sleep(flush_s)
            _count_once(outbox, clock, settings)

    written = _measured(work, device, Path("/proc/self/io"))
    outbox.close()
    times = HOURS_A_DAY * HOUR_S / flush_s / flushes
    return Written(files=times * written.files, device=None if written.device is None else times * written.device)


class _Clock:
    now = 0.0


def _count_for_an_hour(outbox: Outbox, clock: _Clock, settings: AgentSettings) -> None:
    end = clock.now + HOUR_S
    while clock.now < end:
        _count_once(outbox, clock, settings)


def _count_once(outbox: Outbox, clock: _Clock, settings: AgentSettings) -> None:
    rows = round(settings.outbox.flush_s)
    outbox.append(
        [
            IntervalCounts(
                model="digits",
                artifact_digest="sha256:" + "a" * 64,
                counts=OutcomeCounts(kept=rows - 6, escalated=6, audited=1),
                started_at=clock.now,
                ended_at=clock.now + settings.outbox.flush_s,
            )
        ]
    )
    clock.now += settings.outbox.flush_s
    while (batch := outbox.batch()).records:
        outbox.acknowledge(batch.instance, batch.records[-1].sequence)


def _audit_for_an_hour(store: Store, settings: AgentSettings) -> None:
    state = full_state()
    for _ in range(round(HOUR_S / settings.update.audit_save_s)):
        store.save(state)


def _start_and_stop(place: Path, settings: AgentSettings) -> None:
    for _ in range(STARTS_A_DAY):
        ends = EndsFile(place / "ends.json", settings.outbox.flush_s)
        ends.begin()
        ends.end()


def full_state() -> ModelState:
    """Return a state as large as it gets: two slots, all failures and audits that are remembered."""

    def release(number: int) -> Release:
        digests = (f"sha256:{number:064x}", f"sha256:{number + 1000:064x}")
        return Release(version=f"v{number}", artifact_digest=digests[0], certificate_digest=digests[1])

    def slot(number: int) -> Slot:
        found = release(number)
        return Slot(
            release=found, variant_digest=f"sha256:{number + 2000:064x}", certificate_digest=found.certificate_digest
        )

    kept = AgentSettings().update.max_failures
    return ModelState(
        model="digits",
        active=slot(1),
        previous=slot(0),
        is_committed=True,
        desired=release(1),
        failures=tuple(Failure(release=release(n), kind="failed", reason="x" * 80) for n in range(2, 2 + kept)),
        audits=tuple(
            Audit(artifact_digest=release(n).artifact_digest, certificate_digest="sha256:" + "c" * 64, max_harm=0.01)
            for n in range(MAX_AUDITS)
        ),
    )


def whole_agent(scratch: Path, disk: Path, speed: int, minutes: int, *, is_on_loop: bool) -> Written:
    """Return bytes a day of a real agent that answers a request a second, everything ``speed`` times as fast."""
    settings = AgentSettings()
    os.environ["PENSTOCK_AGENT_OUTBOX__FLUSH_S"] = str(settings.outbox.flush_s / speed)
    os.environ["PENSTOCK_AGENT_UPDATE__AUDIT_SAVE_S"] = str(settings.update.audit_save_s / speed)
    (agents := disk / "a").mkdir()
    model = models.digits(scratch / "digits")
    pins = choose_pins(pin=False)
    with running(scratch, pins) as cores, running(agents, pins) as servers:
        agent = servers.agent(cores.core([model.layout]), [model])
        io = Path(f"/proc/{agent.pid}/io")
        with Client(f"unix://{agent.endpoints['socket']}") as client:
            _live(client, model.row, speed, 60 * _FIRST_MINUTES)  # what a first start writes is over
            os.sync()
            log = servers.directory / "penstock agent.log"
            log_bytes = log.stat().st_size
            device = device_of(disk) if is_on_loop else None
            requests = 60 * minutes
            written = _measured(lambda: _live(client, model.row, speed, requests), device, io, has_sockets=True)
            print(f"  log: {log.stat().st_size - log_bytes} bytes in {minutes} minutes of the agent's time")
        days = requests / (HOURS_A_DAY * HOUR_S)
        return Written(files=written.files / days, device=None if written.device is None else written.device / days)


def _live(client: Client, row: np.ndarray, speed: int, requests: int) -> None:
    began = time.perf_counter()
    for number in range(requests):
        time.sleep(max(0.0, began + number / speed - time.perf_counter()))
        client.infer("digits", {"x": row})


def _times(times: int, work: Callable[[], None], device: Path | None) -> Written:
    once = _measured(work, device, Path("/proc/self/io"))
    return Written(files=times * once.files, device=None if once.device is None else times * once.device)


def _measured(work: Callable[[], None], device: Path | None, io: Path, *, has_sockets: bool = False) -> Written:
    os.sync()
    device_before, before = _device_bytes(device), _file_bytes(io)
    work()
    os.sync()
    device_after, after = _device_bytes(device), _file_bytes(io)
    is_known = device_before is not None and device_after is not None
    handed_over, pages = (new - old for new, old in zip(after, before, strict=True))
    return Written(
        files=pages if has_sockets else max(handed_over, pages),  # answers are handed over, too
        device=float((device_after or 0) - (device_before or 0)) if is_known else None,
    )


def _file_bytes(io: Path) -> tuple[int, int]:
    """Return what a process handed over to be written, and how many bytes of pages that made dirty."""
    fields = dict(line.split(": ") for line in io.read_text().splitlines())
    return int(fields["wchar"]), int(fields["write_bytes"])


def _device_bytes(statistics: Path | None) -> int | None:
    return int(statistics.read_text().split()[6]) * 512 if statistics else None  # sectors written


def device_of(directory: Path) -> Path:
    """Return the statistics of the block device that a directory is on."""
    number = directory.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")


@contextmanager
def loop_device(scratch: Path) -> Iterator[Path]:
    """Yield a directory on an ext4 file system of its own: all defaults, with nothing left to initialize."""
    image, directory = scratch / "image", scratch / "m"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def _figures(found: dict[str, Written]) -> tuple[float, float | None]:
    first, *others = found.values()
    for other in others:
        first += other
    return first.files, first.device


def _print(name: str, files: float | str, device: float | str | None, unit: str = "") -> None:
    cells = (f"{value / 1e6:.1f}" if isinstance(value, float | int) else value or "-" for value in (files, device))
    print(f"{name:<34}" + "".join(f"{cell:>10}" for cell in cells) + f"  {unit}".rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
