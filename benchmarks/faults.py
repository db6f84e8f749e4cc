"""``python -m benchmarks.faults``: what a core does under overload and faults, one table.

Real cores, real processes, real sockets, one after the other: about five minutes in all. What needs root, or a Debian
package that is not there, says so. Prints figures, asserts nothing; docs/operations.md shows a run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil

from benchmarks import models
from benchmarks.models import Model
from benchmarks.overload import overload
from benchmarks.servers import Server, Servers, choose_pins, running, wait
from penstock.artifact.layout import Layout
from penstock.errors import PenstockError
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.rest.connection import ask

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
HAS_FAKETIME = FAKETIME.exists()
IN_PROCESSES = '[serving]\nplacement = "process"\nreplicas = 2\nstall_s = 2.0\n'
TWO_TENANTS = "".join(f'[[tenants]]\nname = "{name}"\ntoken = "{name}-secret"\n' for name in ("small", "noisy", "ops"))


class NotHere(Exception):
    """This machine cannot show it; the message says why."""


@dataclass(slots=True)
class Load:
    """Callers over HTTP, each on a connection of its own, which ask again as soon as they are answered.

    Attributes:
        done: when each request ended, how long it took, and its status; 0 where the connection was lost.
    """

    endpoint: str
    request: bytes
    callers: int
    done: list[tuple[float, float, int]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        self.tasks = [asyncio.create_task(self._caller()) for _ in range(self.callers)]
        try:
            yield self
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _caller(self) -> None:
        while True:
            began = time.perf_counter()
            try:
                await self._ask_on_one_connection()
            except (OSError, asyncio.IncompleteReadError):
                now = time.perf_counter()
                self.done.append((now, now - began, 0))
                await asyncio.sleep(0.05)

    async def _ask_on_one_connection(self) -> None:
        host, _, port = self.endpoint.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            while True:
                began = time.perf_counter()
                status = await asked(reader, writer, self.request)
                now = time.perf_counter()
                self.done.append((now, now - began, status))
                if status != 200:
                    await asyncio.sleep(0.02)
        finally:
            writer.close()

    def since(self, at: float) -> list[tuple[float, float, int]]:
        return [one for one in self.done if one[0] >= at]

    def p_ms(self, part: float, *, since: float) -> float:
        """Return a percentile of answered requests, in milliseconds."""
        took = sorted(took_s for ended, took_s, status in self.done if status == 200 and ended >= since)
        return 1e3 * took[min(len(took) - 1, int(len(took) * part))] if took else float("nan")

    def back_after_s(self, at: float) -> float:
        """Say when, after a fault, requests were answered again and none failed any more within this run."""
        bad = [ended for ended, _, status in self.done if ended >= at and status != 200]
        good = [ended for ended, _, status in self.done if status == 200 and ended >= max(bad, default=at)]
        return min(good, default=float("nan")) - at

    def statuses(self, *, since: float) -> str:
        count = Counter(status for _, _, status in self.since(since))
        return ", ".join(f"{n} {status or 'connections lost'}" for status, n in sorted(count.items(), reverse=True))


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Ask once; return the status."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
    await reader.readexactly(length)
    return int(head.split(" ", 2)[1])


def request_of(model: Model, *, token: str = "") -> bytes:
    """Make one request for one row, as bytes."""
    row = {"name": "x", "shape": list(model.row.shape), "datatype": "FP32", "data": model.row.ravel().tolist()}
    body = msgspec.json.encode({"inputs": [row]})
    credential = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST /v2/models/{model.name}/infer HTTP/1.1\r\nHost: core\r\n{credential}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# -- faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every fault gets."""

    servers: Servers
    digits: Model
    steady: Model
    seconds: float

    def core(self, name: str, *layouts: Path, config: str = "") -> Server:
        layouts = layouts or (self.digits.layout,)
        core = self.servers.core(layouts, name=name, config=config)
        for model in (self.digits, self.steady):
            if model.layout in layouts:
                wait(f"{name} ready", partial(_is_ready, core, model))
        return core


async def _overloaded(bench: Bench, deadline_s: float | None) -> str:
    seconds = bench.seconds * 3
    found = await asyncio.to_thread(overload, bench.servers, 5.0, seconds, deadline_s, 0.0)
    refused = [one for one in found.refused if one.has_hint]
    took_ms = 1e3 * median([one.took_s for one in refused] or [float("nan")])
    late = found.ran - found.ok
    return (
        f"{len(found.outcomes)} sent in {seconds:g} s; goodput {found.goodput:.0%} of the peak of "
        f"{found.served_per_s:.0f} rows/s; {len(found.refused)} refused, {len(refused)} of them with a hint, "
        f"median {took_ms:.1f} ms; {late} rows ran that were not answered in time"
    )


async def with_deadlines(bench: Bench) -> str:
    return await _overloaded(bench, 0.5)


async def without_deadlines(bench: Bench) -> str:
    return await _overloaded(bench, None)


async def worker_killed(bench: Bench) -> str:
    return await _worker(bench, "killed", signal.SIGKILL)


async def worker_stopped(bench: Bench) -> str:
    return await _worker(bench, "stopped", signal.SIGSTOP)


async def _worker(bench: Bench, name: str, fault: signal.Signals) -> str:
    core = bench.core(name, bench.steady.layout, config=IN_PROCESSES)
    async with Load(core.endpoints["http"], request_of(bench.steady), 8).running() as load:
        await asyncio.sleep(1.0)
        at = time.perf_counter()
        workers = [p for p in psutil.Process(core.pid).children(recursive=True) if "worker" in " ".join(p.cmdline())]
        if not workers:
            raise NotHere("no worker process was found")
        workers[0].send_signal(fault)
        await asyncio.sleep(bench.seconds)
        longest_ms, back_s = load.p_ms(1.0, since=at), load.back_after_s(at)
        return f"{load.statuses(since=at)}; longest answer {longest_ms:.0f} ms; none failed after {back_s:.1f} s"


async def terminated(bench: Bench) -> str:
    core = bench.core("terminated", bench.steady.layout)
    async with Load(core.endpoints["http"], request_of(bench.steady), 16).running() as load:
        await asyncio.sleep(1.0)
        at = time.perf_counter()
        os.kill(core.pid, signal.SIGTERM)
        process = next(one for one in bench.servers.processes if one.pid == core.pid)
        code = await asyncio.to_thread(process.wait, 30)
        took_s = time.perf_counter() - at
        answered = sum(status == 200 for _, _, status in load.since(at))
        refused = sum(status == 503 for _, _, status in load.since(at))
        other = sum(status not in (0, 200, 503) for _, _, status in load.since(at))
    ends = f"{answered} in flight answered, {refused} refused with 503, {other} other statuses"
    return f"exit {code} after {took_s:.1f} s; {ends}"


async def new_version(bench: Bench) -> str:
    core = bench.core("new-version")
    again = models.digits(bench.servers.directory / "digits-again")
    async with Load(core.endpoints["http"], request_of(bench.digits), 16).running() as load:
        await asyncio.sleep(1.0)
        before_ms, at = load.p_ms(0.99, since=0.0), time.perf_counter()
        await asyncio.to_thread(_push, core, again.layout)
        await asyncio.sleep(bench.seconds)
        return f"{load.statuses(since=at)}; p99 {before_ms:.1f} ms before, {load.p_ms(0.99, since=at):.1f} ms with it"


async def thousand_connections(bench: Bench) -> str:
    core = bench.core("thousand")
    async with Load(core.endpoints["http"], request_of(bench.digits), 1000).running() as load:
        await asyncio.sleep(2.0)
        at = time.perf_counter()
        await asyncio.sleep(bench.seconds)
        rate = len(load.since(at)) / bench.seconds
        return f"{load.statuses(since=at)}; {rate:.0f} requests/s, p99 {load.p_ms(0.99, since=at):.0f} ms"


async def slow_clients(bench: Bench) -> str:
    core = bench.core("slow-clients")
    host, _, port = core.endpoints["http"].rpartition(":")
    request = request_of(bench.digits)
    alone_ms = await _p99_ms(core, request, bench.seconds)
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: core\r\nContent-Length: {50 * 1024 * 1024}\r\n\r\n"
    slow = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
    for i, (_, writer) in enumerate(slow):
        writer.write(head.encode() if i % 2 else request[:60])
    beside_ms = await _p99_ms(core, request, bench.seconds)
    memory = psutil.Process(core.pid).memory_info().rss / 1e6
    for _, writer in slow:
        writer.close()
    return f"p99 of 4 others {alone_ms:.1f} ms alone, {beside_ms:.1f} ms beside them; the core has {memory:.0f} MB"


async def disk_full(bench: Bench) -> str:
    directory = bench.servers.directory / "disk-full"
    directory.mkdir()
    mounted = await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(directory)], capture_output=True
    )
    if mounted.returncode:
        raise NotHere("needs root, for a small disk")
    try:
        core = bench.core("disk-full")
        (directory / "ballast").write_bytes(b"\0" * 1024)
        with suppress(OSError), (directory / "ballast").open("wb") as ballast:
            while True:
                ballast.write(b"\0" * 65536)
                ballast.flush()
        async with Load(core.endpoints["http"], request_of(bench.digits), 8).running() as load:
            at = time.perf_counter()
            try:
                await asyncio.to_thread(_push, core, bench.steady.layout)
                push = "a push succeeded"
            except PenstockError as error:
                push = f"a push was refused ({error.code})"
            await asyncio.sleep(bench.seconds)
            return f"{load.statuses(since=at)}; {push}"
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(directory)], check=False)


async def noisy_neighbour(bench: Bench) -> str:
    core = bench.servers.core([], name="neighbours", config=TWO_TENANTS)
    # long enough that the device is what there is too little of, and not the machine for callers and core
    model = models.uneven(bench.servers.directory / "long", row_steps=150)
    await asyncio.to_thread(_push, core, model.layout, "ops-secret")
    request, noise = (request_of(model, token=f"{name}-secret") for name in ("small", "noisy"))
    await asyncio.to_thread(wait, "model ready", lambda: asyncio.run(_answers(core, request)))
    alone_ms = await _p99_ms(core, request, bench.seconds)
    async with Load(core.endpoints["http"], noise, 40).running() as noisy:
        await asyncio.sleep(0.5)
        at = time.perf_counter()
        beside_ms = await _p99_ms(core, request, bench.seconds)
        rate = len(noisy.since(at)) / (time.perf_counter() - at)
    beside = f"{beside_ms:.0f} ms beside 40 of another tenant ({rate:.0f} requests/s)"
    return f"p99 of 4 callers {alone_ms:.0f} ms alone, {beside}"


async def clock_jump(bench: Bench) -> str:
    if not HAS_FAKETIME:
        raise NotHere("needs the Debian package faketime")
    offset = bench.servers.directory / "clock-offset"
    offset.write_text("+0d\n")
    fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
    with _environment({**fake, "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}):
        core = await asyncio.to_thread(bench.core, "clock")
    async with Load(core.endpoints["http"], request_of(bench.digits), 8).running() as load:
        await asyncio.sleep(1.0)
        at = time.perf_counter()
        for jump in ("+400d", "-400d"):
            offset.write_text(f"{jump}\n")
            await asyncio.sleep(bench.seconds / 2)
        return f"{load.statuses(since=at)}; p99 {load.p_ms(0.99, since=at):.1f} ms"


FAULTS: dict[str, Callable[[Bench], Coroutine[Any, Any, str]]] = {
    "5 times what it can serve, deadlines of 0.5 s": with_deadlines,
    "5 times what it can serve, no deadlines": without_deadlines,
    "one of two workers killed (-9)": worker_killed,
    "one of two workers stopped (SIGSTOP, stall_s = 2)": worker_stopped,
    "SIGTERM": terminated,
    "a new default version": new_version,
    "1,000 connections that ask": thousand_connections,
    "200 clients that never finish": slow_clients,
    "disk full": disk_full,
    "a neighbour with 10 times the callers": noisy_neighbour,
    "the clock jumps by 400 days, and back by 800": clock_jump,
}


async def _p99_ms(core: Server, request: bytes, seconds: float) -> float:
    async with Load(core.endpoints["http"], request, 4).running() as load:
        await asyncio.sleep(0.5)
        at = time.perf_counter()
        await asyncio.sleep(seconds)
        return load.p_ms(0.99, since=at)


async def _answers(core: Server, request: bytes) -> bool:
    host, _, port = core.endpoints["http"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        return await asked(reader, writer, request) == 200
    finally:
        writer.close()


def _is_ready(core: Server, model: Model) -> bool:
    return ask(f"http://{core.endpoints['http']}", "GET", f"/v2/models/{model.name}/ready", timeout_s=5.0).status == 200


def _push(core: Server, layout: Path, token: str = "") -> None:
    with RegistryClient(f"http://{core.endpoints['http']}", token=token) as registry:
        transfer.push(registry, Layout(layout))


@contextmanager
def _environment(more: dict[str, str]) -> Any:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each fault; overload takes 3 times that (10)")
    parser.add_argument("--only", default="", help="those whose name has this in it")
    options = parser.parse_args(arguments)
    print("| fault | what happened |\n|---|---|", flush=True)
    for name, fault in FAULTS.items():
        if options.only not in name:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as scratch,
            running(Path(scratch), choose_pins(pin=False)) as servers,
        ):
            bench = Bench(
                servers=servers,
                digits=models.digits(servers.directory / "digits"),
                steady=models.uneven(servers.directory / "steady", row_steps=20),
                seconds=options.seconds,
            )
            try:
                said = asyncio.run(fault(bench))
            except NotHere as error:
                said = f"not shown: {error}"
            except Exception as error:  # one fault that cannot be shown does not cost the others
                said = f"the measurement failed: {type(error).__name__}: {error}"
        print(f"| {name} | {said} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
