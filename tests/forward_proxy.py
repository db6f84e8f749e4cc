"""A small forward proxy in a process of its own: tunnels by CONNECT, and plain HTTP by whole addresses.

Hosts below ``.test`` are this machine, so that tests need no network. Each request is a line on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import wait_until

_HEAD = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r\n")


@dataclass
class ForwardProxy:
    """A proxy that runs. ``log`` holds its requests: method and target, and who asked."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://me:secret@127.0.0.1:{self.port}"

    def requests(self) -> list[str]:
        return self.log.read_text().splitlines()[1:]


@contextlib.contextmanager
def forward_proxy(directory: Path) -> Iterator[ForwardProxy]:
    """Run a proxy on a free port of loopback."""
    log = directory / "proxy.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tests.forward_proxy"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command, stdout=file, env=environment)
    try:
        wait_until("the proxy", lambda: log.read_text().endswith("\n"))
        yield ForwardProxy(port=int(log.read_text()), log=log)
    finally:
        process.terminate()
        process.wait()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            match = _HEAD.match(head)
            assert match is not None
            method, target = match[1].decode(), match[2].decode()
            who = "with" if b"\r\nproxy-authorization: basic bwu6c2vjcmv0\r\n" in head.lower() else "without"
            print(method, target, who, "password")
            parts = urllib.parse.urlsplit(f"//{target}" if method == "CONNECT" else target)
            host = "127.0.0.1" if (parts.hostname or "").endswith(".test") else parts.hostname
            there, back = await asyncio.open_connection(host, parts.port or 80)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_copy(reader, back), _copy(there, writer))
                return
            path = urllib.parse.urlunsplit(("", "", parts.path, parts.query, ""))
            back.write(re.sub(rb"(?i)\r\n(?:proxy-authorization|connection):[^\r]*", b"", head.replace(
                match[2], path.encode(), 1
            )).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))  # fmt: skip
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            back.write(await reader.readexactly(int(length[1])) if length else b"")
            await _copy(there, writer)  # the server closes, and so does the proxy
            return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
