"""Answers that come in parts, over real sockets: sent as they are made, and given up when nobody wants them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from penstock.http.routes import Reply, Request, Route
from tests.penstock.http.text_house import serving
from tests.waiting import until


@dataclass
class Tap:
    """Gives the parts that are put into it; None ends them, and an error is raised."""

    parts: asyncio.Queue[bytes | Exception | None] = field(default_factory=asyncio.Queue)
    opened: int = 0
    closed: int = 0
    kept: list[object] = field(default_factory=list)  # so that no garbage collector closes what the server should

    async def flow(self) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        try:
            while (part := await self.parts.get()) is not None:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.closed += 1

    async def handle(self, request: Request) -> Reply:
        parts = self.flow()
        self.kept.append(parts)
        await anext(parts)
        return Reply(status=202, headers={"x-kind": "tap"}, parts=parts)


@asynccontextmanager
async def tapped(folder: Path, request: bytes) -> AsyncIterator[tuple[Tap, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request for a tap that has given its first part, an empty one."""
    tap = Tap()
    tap.parts.put_nowait(b"")
    async with serving([Route("GET", "/tap", tap.handle)], folder / "s"):
        reader, writer = await asyncio.open_unix_connection(folder / "s")
        writer.write(request)
        yield tap, reader, writer
        writer.close()
        await until("the parts are closed", lambda: tap.opened == tap.closed == 1)


GET = b"GET /tap HTTP/1.1\r\nHost: h\r\nx-request-id: r\r\n\r\n"


async def test_parts_are_sent_one_by_one_and_end_as_a_whole_message(tmp_path: Path) -> None:
    async with tapped(tmp_path, GET) as (tap, reader, _):
        tap.parts.put_nowait(b"one")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202")
        assert b"x-kind: tap" in head
        assert b"x-request-id: r" in head
        assert await reader.readexactly(8) == b"3\r\none\r\n"
        tap.parts.put_nowait(b"")
        tap.parts.put_nowait(b"second")
        assert await reader.readexactly(11) == b"6\r\nsecond\r\n"
        tap.parts.put_nowait(None)
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        assert tap.closed == 1


async def test_a_part_that_fails_breaks_the_message_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with tapped(tmp_path, GET) as (tap, reader, _):
        tap.parts.put_nowait(b"one")
        await reader.readuntil(b"one\r\n")
        tap.parts.put_nowait(RuntimeError("a defect"))
        assert await reader.read() == b""
    assert "a defect" in caplog.text


async def test_a_client_that_goes_away_closes_the_parts(tmp_path: Path) -> None:
    async with tapped(tmp_path, GET) as (tap, reader, writer):
        tap.parts.put_nowait(b"one")
        await reader.readuntil(b"one\r\n")
        assert tap.closed == 0
        writer.close()
        await until("the parts are closed", lambda: tap.closed)


async def test_a_head_is_answered_without_parts(tmp_path: Path) -> None:
    async with tapped(tmp_path, GET.replace(b"GET", b"HEAD")) as (tap, reader, _):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 202")
        await until("the parts are closed", lambda: tap.closed)


async def test_an_old_client_gets_parts_until_the_connection_closes(tmp_path: Path) -> None:
    async with tapped(tmp_path, GET.replace(b"HTTP/1.1", b"HTTP/1.0")) as (tap, reader, _):
        for part in (b"one", b"two", None):
            tap.parts.put_nowait(part)
        assert (await reader.read()).endswith(b"\r\n\r\nonetwo")


async def test_a_server_that_stops_closes_the_parts(tmp_path: Path) -> None:
    tap = Tap()
    tap.parts.put_nowait(b"")
    async with serving([Route("GET", "/tap", tap.handle)], tmp_path / "s"):
        _, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(GET)
        await until("it is asked", lambda: tap.opened)
    await until("the parts are closed", lambda: tap.closed)
    writer.close()
