"""The express lane: framing over real sockets, and the hand-over of whatever is not plain."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.http import express
from penstock.http.express import Express
from tests.waiting import PATIENCE_S, until

HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n"


@dataclass
class House:
    """A lane that echoes bodies upper-cased, before an aiohttp server that echoes them as they are."""

    port: int = 0
    lane: Express[str] | None = None
    prepared: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    by_lane: int = 0
    by_aiohttp: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0

    def prepare(self, target: str, headers: Mapping[str, str]) -> str | None:
        self.prepared.append((target, headers))
        return None if "x-slow" in headers else target

    async def answer(self, target: str, body: bytes) -> bytes:
        self.by_lane += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if body == b"bug":
            raise RuntimeError("a defect")
        return express.response(200, b"Content-Type: text/plain", body.upper())

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.by_aiohttp += 1
        return web.Response(body=await request.read())


@asynccontextmanager
async def house(*, max_body_bytes: int = 1000) -> AsyncIterator[House]:
    made = House()
    made.gate.set()
    server = web.Server(made.handle, access_log=None)
    made.lane = Express(
        prefix=b"POST /v2/models/", prepare=made.prepare, answer=made.answer, fallback=server,
        max_body_bytes=max_body_bytes, keepalive_s=60.0,
    )  # fmt: skip
    listener = await asyncio.get_running_loop().create_server(made.lane, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listener.close()
        await made.lane.shutdown(1.0)
        await server.shutdown(1.0)


def request(body: bytes, extra: bytes = b"") -> bytes:
    return HEAD % (len(body), extra) + body


async def talk(made: House, *parts: bytes, answers: int) -> list[tuple[int, bytes]]:
    """Send parts one by one; read so many answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return [await one_answer(reader) for _ in range(answers)]
    finally:
        writer.close()
        await writer.wait_closed()


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length
        assert re.search(rb"(?i)\r\ndate: \w{3}, \d\d \w{3} \d{4} ", head)
        return int(head.split(b" ")[1]), await reader.readexactly(int(length[1]))


async def test_a_plain_request_takes_the_lane_and_the_connection_stays() -> None:
    async with house() as made:
        parts = [request(b"one"), request(b""), request(b"two", b"Connection: keep-alive\r\n")]
        answers = await talk(made, *parts, answers=3)
        assert answers == [(200, b"ONE"), (200, b""), (200, b"TWO")]
        assert (made.by_lane, made.by_aiohttp) == (3, 0)
        target, headers = made.prepared[0]
        assert (target, dict(headers)) == ("/v2/models/m/infer", {"host": "h", "content-length": "3"})


async def test_heads_that_come_again_are_understood_once() -> None:
    async with house() as made:
        await talk(made, *[request(b"abc")] * 10, answers=10)
        assert len(made.prepared) == 1
        for index in range(600):
            made.lane.understand(HEAD[:-2] % (0, b"x-request-id: %d" % index))  # type: ignore[union-attr]
        assert len(made.lane.heads) <= 256  # type: ignore[union-attr]


UNUSUAL = {
    "chunked": b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    "both framings": request(b"", b"Transfer-Encoding: chunked\r\n"),
    "expect": request(b"abc", b"Expect: 100-continue\r\n"),
    "encoding": request(b"abc", b"Content-Encoding: identity\r\n"),
    "close": request(b"abc", b"Connection: close\r\n"),
    "upgrade": request(b"abc", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "old version": request(b"abc").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two lengths": request(b"abc", b"Content-Length: 3\r\n"),
    "two other lengths": request(b"abc", b"content-length: 4\r\n"),
    "signed length": request(b"abc").replace(b": 3", b": +3"),
    "unicode length": request(b"abc").replace(b": 3", ": ³".encode()),
    "no length": b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n\r\n",
    "no host": request(b"abc").replace(b"Host: h\r\n", b""),
    "another method": b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n",
    "another path": request(b"abc").replace(b"/v2/models", b"/v3/models"),
    "absolute form": request(b"abc").replace(b"/v2/", b"http://h/v2/"),
    "space before colon": request(b"abc", b"X-A : 1\r\n"),
    "folded line": request(b"abc", b"X-A: 1\r\n 2\r\n"),
    "no colon": request(b"abc", b"nonsense\r\n"),
    "control character": request(b"abc", b"X-A: a\x00b\r\n"),
    "bare line feed": request(b"abc", b"X-A: a\nX-B: b\r\n"),
    "bare return": request(b"abc", b"X-A: a\rX-B: b\r\n"),
    "not ascii": request(b"abc", "X-A: é\r\n".encode()),
    "space in the target": request(b"abc").replace(b"/m/", b"/m m/"),
    "told to": request(b"abc", b"X-Slow: 1\r\n"),
    "long head": request(b"abc", b"X-A: " + b"a" * 5000 + b"\r\nX-B: " + b"b" * 5000 + b"\r\n"),
    "large body": request(b"a" * 1001),
    "junk": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL.keys())
async def test_whatever_is_not_plain_is_the_full_servers(data: bytes) -> None:
    """It sees the bytes unchanged, so it answers exactly as it does without the lane."""
    async with house() as made:
        server = web.Server(made.handle, access_log=None)
        plain = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        without = await _bytes_back(plain.sockets[0].getsockname()[1], data)
        with_lane = await _bytes_back(made.port, data)
        assert re.sub(rb"Date: [^\r]*", b"", with_lane) == re.sub(rb"Date: [^\r]*", b"", without)
        assert made.by_lane == 0
        plain.close()
        await server.shutdown(1.0)


async def _bytes_back(port: int, data: bytes) -> bytes:
    """Send, and read until the connection ends or nothing has come for a hundred turns of the loop that serves it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, quiet_turns = b"", 0
    try:
        writer.write(data)
        reading = asyncio.create_task(reader.read(65536))
        while quiet_turns < 100:  # turns, not seconds: a busy machine may stop this process for longer than any time
            await asyncio.sleep(0.001)
            quiet_turns += 1
            if reading.done():
                if not reading.result():
                    break
                received, quiet_turns = received + reading.result(), 0
                reading = asyncio.create_task(reader.read(65536))
        reading.cancel()
        return received
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_connection_is_handed_over_between_requests_and_for_good() -> None:
    async with house() as made:
        parts = [request(b"one"), request(b"two", b"X-Slow: 1\r\n"), request(b"three")]
        assert await talk(made, b"".join(parts), answers=3) == [(200, b"ONE"), (200, b"two"), (200, b"three")]
        assert (made.by_lane, made.by_aiohttp) == (1, 2)


@settings(max_examples=40)
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=6),
    slow_from=st.integers(0, 7),
    cuts=st.lists(st.integers(0, 1200), max_size=8),
)
def test_however_a_stream_is_cut_every_request_gets_its_answer_in_order(
    bodies: list[bytes], slow_from: int, cuts: list[int]
) -> None:
    async def scenario() -> None:
        async with house() as made:
            stream = b"".join(
                request(body, b"X-Slow: 1\r\n" if index == slow_from else b"") for index, body in enumerate(bodies)
            )
            edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
            parts = [stream[start:stop] for start, stop in itertools.pairwise(edges)]
            answers = await talk(made, *parts, answers=len(bodies))
            assert answers == [
                (200, body if index >= slow_from else body.upper()) if body != b"bug" else (200, b"")
                for index, body in enumerate(bodies)
            ]

    if b"bug" not in bodies:
        asyncio.run(scenario())


async def test_a_client_that_goes_away_cancels_its_answer() -> None:
    async with house() as made:
        made.gate.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(request(b"abc"))
        await until("the request arrives", lambda: made.by_lane)
        writer.close()
        await writer.wait_closed()
        await until("its answer is cancelled", lambda: made.cancelled)
        assert made.lane is not None
        assert not made.lane.connections


async def test_a_client_that_sends_without_reading_is_held_back() -> None:
    async with house(max_body_bytes=100_000) as made:
        made.gate.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        body = b"a" * 50_000
        sending = asyncio.create_task(_send(writer, [request(body)] * 200))
        await asyncio.sleep(0.1)
        assert not sending.done()  # ten megabytes do not fit into the buffers: the lane has stopped reading
        made.gate.set()
        for _ in range(200):
            assert await one_answer(reader) == (200, body.upper())
        await sending
        writer.close()
        await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, parts: list[bytes]) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()


async def test_a_defect_ends_the_connection_not_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async with house() as made:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await talk(made, request(b"bug"), answers=1)
        assert "should not happen" in caplog.text
        assert await talk(made, request(b"fine"), answers=1) == [(200, b"FINE")]


async def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    async with house() as made:
        assert made.lane is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(request(b"abc"))
        assert await one_answer(reader) == (200, b"ABC")
        now = asyncio.get_running_loop().time()
        made.lane.close_idle(now + 59)
        assert len(made.lane.connections) == 1
        made.gate.clear()
        writer.write(request(b"def"))
        await until("the second request arrives", lambda: made.by_lane == 2)
        made.lane.close_idle(now + 100)
        made.gate.set()
        assert await one_answer(reader) == (200, b"DEF")
        made.lane.close_idle(now + 100)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_shutdown_answers_what_is_under_way() -> None:
    async with house() as made:
        assert made.lane is not None
        made.gate.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(request(b"abc"))
        await until("the request arrives", lambda: made.by_lane)
        stopping = asyncio.create_task(made.lane.shutdown(5.0))
        await asyncio.sleep(0)
        made.gate.set()
        assert await one_answer(reader) == (200, b"ABC")
        await stopping
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def test_a_response_is_framed_whatever_its_status() -> None:
    lines = {200: b"HTTP/1.1 200 OK\r\n", 504: b"HTTP/1.1 504 Gateway Timeout\r\n", 599: b"HTTP/1.1 599 \r\n"}
    for status, line in lines.items():
        whole = express.response(status, express.header_lines({"A": "1", "B": "2"}), b"body")
        assert whole.startswith(line + b"A: 1\r\nB: 2\r\nContent-Length: 4\r\nDate: ")
        assert whole.endswith(b" GMT\r\n\r\nbody")
