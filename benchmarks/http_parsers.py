"""``python -m benchmarks.http_parsers``: what reading a plain request costs in the express lane, and otherwise.

Servers answer the same 256 bytes with the same 40, over a unix socket, and differ in who reads HTTP: the express lane,
llhttp through httptools in the lane's place (left out where that is not installed), and aiohttp alone. Every server has
its turn at every load in each round; what is printed is the median of requests a second and of the server's processor
time for each, in one run, since only ratios of one run mean something. Requests either repeat their head byte for byte,
as one client's do, or have an id of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import uvloop
from aiohttp import web

from penstock.http import express
from penstock.http.express import Express
from penstock.wire.context import context_of

BODY, ANSWER = b"b" * 256, b"a" * 40
LINES = b"Content-Type: application/octet-stream"
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
LOADS = (1, 16, 64)


def prepare(target: str, headers: Mapping[str, str]) -> Any:
    return target, context_of(headers)


async def answer(_: Any, body: bytes) -> bytes:
    return express.response(200, LINES, ANSWER)


async def handle(request: web.BaseRequest) -> web.StreamResponse:
    prepare(request.rel_url.raw_path, request.headers)
    await request.read()
    return web.Response(body=ANSWER, headers={"Content-Type": "application/octet-stream"})


def lane() -> Callable[[], asyncio.Protocol]:
    full = web.Server(handle, access_log=None)
    return Express(
        prefix=b"POST /v2/models/", prepare=prepare, answer=answer, fallback=full, max_body_bytes=2**18, keepalive_s=60
    )


def aiohttp_alone() -> Callable[[], asyncio.Protocol]:
    return web.Server(handle, access_log=None)


def httptools_lane() -> Callable[[], asyncio.Protocol]:
    import httptools  # type: ignore[import-not-found]

    class Connection(asyncio.Protocol):
        """As little around the parser as could do the lane's work: one request after the other, answered by a task."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.parser = httptools.HttpRequestParser(self)
            self.loop = asyncio.get_running_loop()

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_message_begin(self) -> None:
            self.target, self.body = b"", b""
            self.headers: dict[str, str] = {}

        def on_url(self, url: bytes) -> None:
            self.target += url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers[name.decode("ascii").lower()] = value.decode("ascii")

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            prepared = prepare(self.target.decode("ascii"), self.headers)
            self.loop.create_task(self.answer(prepared, self.body))

        async def answer(self, prepared: Any, body: bytes) -> None:
            self.transport.write(await answer(prepared, body))

    return Connection


SERVERS: Mapping[str, Callable[[], Callable[[], asyncio.Protocol]]] = {
    "express lane": lane,
    "httptools": httptools_lane,
    "aiohttp": aiohttp_alone,
}


class Caller(asyncio.Protocol):
    """Sends a request as soon as the answer to the last one is whole."""

    def __init__(self, counts: Callable[[], int], repeats: bool) -> None:
        self._counts, self._repeats = counts, repeats
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(ANSWER):
            self._received = b""
            self._send()

    def _send(self) -> None:
        number = self._counts()
        own = b"" if self._repeats else b"x-request-id: %012d\r\n" % number
        self._transport.write(b"%b%bContent-Length: %d\r\n\r\n%b" % (HEAD, own, len(BODY), BODY))


async def measure(socket: Path, pid: int, callers: int, repeats: bool, seconds: float) -> tuple[float, float]:
    """Return requests a second, and the server's processor time a request, in microseconds."""
    counter = itertools.count()
    sent = 0

    def counts() -> int:
        nonlocal sent
        sent = next(counter)
        return sent

    loop = asyncio.get_running_loop()
    opened = [await loop.create_unix_connection(lambda: Caller(counts, repeats), str(socket)) for _ in range(callers)]
    await asyncio.sleep(seconds / 4)
    process = psutil.Process(pid)
    began, before, used = time.perf_counter(), sent, process.cpu_times()
    await asyncio.sleep(seconds)
    spent = time.perf_counter() - began
    done, after = sent - before, process.cpu_times()
    for transport, _ in opened:
        transport.abort()
    return done / spent, 1e6 * (after.user + after.system - used.user - used.system) / max(1, done)


async def serve(name: str, socket: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(SERVERS[name](), socket)
    print("ready", flush=True)
    await server.serve_forever()


def installed() -> list[str]:
    try:
        import httptools  # noqa: F401
    except ImportError:
        return [name for name in SERVERS if name != "httptools"]
    return list(SERVERS)


def compare(rounds: int, seconds: float) -> None:
    figures: dict[tuple[str, bool, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        started = {}
        for name in installed():
            socket = Path(directory) / name.replace(" ", "-")
            command = [sys.executable, "-m", "benchmarks.http_parsers", "--serve", name, str(socket)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            started[name] = process, socket
        try:
            for _, repeats, callers in itertools.product(range(rounds), (True, False), LOADS):
                for name, (process, socket) in started.items():
                    told = uvloop.run(measure(socket, process.pid, callers, repeats, seconds))
                    figures.setdefault((name, repeats, callers), []).append(told)
        finally:
            for process, _ in started.values():
                process.terminate()
                process.wait()
    for repeats in (True, False):
        print(f"\n{'heads that come again' if repeats else 'a head of its own each'}")
        print(f"{'server':14}" + "".join(f"{callers:>28} callers" for callers in LOADS))
        for name in installed():
            cells = []
            for callers in LOADS:
                rates, costs = zip(*figures[name, repeats, callers], strict=True)
                base = statistics.median(cost for _, cost in figures["express lane", repeats, callers])
                cost = statistics.median(costs)
                cells.append(f"{statistics.median(rates):10.0f}/s {cost:7.1f} us  x{cost / base:.2f}")
            print(f"{name:14}" + "".join(f"{cell:>36}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_parsers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--serve", nargs=2, metavar=("SERVER", "SOCKET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(*options.serve))
    else:
        compare(options.rounds, options.seconds)


if __name__ == "__main__":
    main()
