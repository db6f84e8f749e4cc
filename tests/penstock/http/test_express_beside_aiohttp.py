"""The express lane beside aiohttp alone, on the same bytes: whatever a client sends, both take it or refuse it alike.

A lane that read a head, or where a message ends, otherwise than the full server would be a way past every check that
stands between the two (RFC 9112, 11.2). So each case goes through both, cut in the same places: what was accepted, what
came of it, every byte of the answers, and whether the connection is over.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.http import express
from penstock.http.express import Express
from penstock.http.server import HttpLimits

MAX_BODY_BYTES = 4096
_QUIET_TURNS = 12
_DATE = re.compile(rb"\r\n(?:Date|Server): [^\r]*", re.IGNORECASE)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiohttp.server")  # it tells of every request that it refuses


HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n"
BODY = b"0123456789"
PLAIN = HEAD + b"Content-Length: 10\r\n\r\n" + BODY


class Wire(asyncio.Transport):
    """One connection in memory: collects what a server writes, and whether it closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.protocol: asyncio.Protocol | None = None
        self.is_over = False

    def open(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_over:
            self.sent += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.is_over

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Handed(asyncio.Protocol):
    """aiohttp's protocol for one connection, which tells how much it was given first."""

    def __init__(self, full: asyncio.Protocol, begin: Callable[[bytes], None]) -> None:
        self._full, self._begin = full, begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._full.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._full.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._begin(data)
        self._full.data_received(data)


@dataclass
class House:
    """aiohttp with the lane before it, and aiohttp alone. Both answer with what they read of a request."""

    by_lane: list[str] = field(default_factory=list)
    by_full: list[str] = field(default_factory=list)
    delivered: int = 0  # bytes of the connection so far
    handed_at: int | None = None  # the first byte of the connection that the lane gave to aiohttp

    def __post_init__(self) -> None:
        limit = HttpLimits(max_body_bytes=1, max_body_setting="", body_s=1).max_header_bytes
        self.full = web.Server(self._handle, access_log=None, max_field_size=limit, max_line_size=limit)
        self.lane: Express[tuple[str, Mapping[str, str]]] = Express(
            prefix=b"POST /v2/models/", prepare=lambda *head: head, answer=self._answer,
            fallback=lambda: Handed(self.full(), self._begin), max_body_bytes=MAX_BODY_BYTES, keepalive_s=60.0,
        )  # fmt: skip

    def _begin(self, data: bytes) -> None:
        if self.handed_at is None:
            self.handed_at = self.delivered - len(data)

    async def _answer(self, head: tuple[str, Mapping[str, str]], body: bytes) -> bytes:
        self.by_lane.append(_told("POST", *head, body))
        return express.response(200, b"Content-Type: text/plain", self.by_lane[-1].encode())

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.raw_headers}
        told = _told(request.method, request._message.path, headers, await request.read())
        self.by_full.append(told)
        return web.Response(body=told.encode(), headers={"Content-Type": "text/plain"})

    async def ask(self, protocol: asyncio.Protocol, parts: Iterable[bytes]) -> tuple[list[bytes], bool]:
        """Send parts, and let each be answered; return the answers, and whether the connection is over."""
        self.by_lane, self.by_full, self.delivered, self.handed_at = [], [], 0, None
        wire = Wire()
        wire.open(protocol)
        for part in parts:
            assert wire.protocol is not None
            if not wire.is_over:
                self.delivered += len(part)
                wire.protocol.data_received(part)
                if len(part) > 1:
                    await _settle(wire)
        await _settle(wire)
        done = answers(bytes(wire.sent)), wire.is_over
        wire.close()
        await asyncio.sleep(0)
        return done


async def _settle(wire: Wire) -> None:
    """Let the server go on until nothing more comes of it: turns of the loop, in which nobody waits for a time."""
    quiet, before = 0, len(wire.sent)
    while quiet < _QUIET_TURNS:
        await asyncio.sleep(0)
        quiet, before = (quiet + 1, before) if len(wire.sent) == before else (0, len(wire.sent))


def _told(method: str, target: str, headers: Mapping[str, str], body: bytes) -> str:
    told = {"method": method, "target": target, "headers": dict(sorted(headers.items())), "body": body.hex()}
    return json.dumps(told)


def answers(sent: bytes) -> list[bytes]:
    """Split what a server sent into answers, without their dates."""
    return [answer for answer in re.split(rb"(?=HTTP/\d\.\d \d{3} )", _DATE.sub(b"", sent)) if answer]


async def compare(house: House, data: bytes, cuts: list[int]) -> int:
    """Check the lane's reading of a connection, and return how many requests it took.

    aiohttp reads the bytes before those that it was handed, alone, and must find the same requests there and nothing
    wrong. It gets them one by one: of bytes that come together it drops the good requests that stand before a bad one,
    so that its own answers to a stream depend on how the network cut it.
    """
    connection = house.lane()
    told, _ = await house.ask(connection, _cut(data, cuts))
    taken, handed_at = house.by_lane, house.handed_at
    found, is_over = await house.ask(house.full(), (bytes([byte]) for byte in data[:handed_at]))
    assert house.by_full == taken
    assert found[: len(taken)] == told[: len(taken)]
    if is_over:  # aiohttp may know from the beginning of a head that it will refuse it; the lane waits for its end
        assert handed_at is None
        assert b"\r\n\r\n" not in connection._buffer  # type: ignore[attr-defined]
    return len(taken)


# -- what is known to be awkward -----------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
LINES: Mapping[str, bytes] = {
    "obs-fold": b"X-A: 1\r\n 2\r\n",
    "obs-fold with a tab": b"X-A: 1\r\n\t2\r\n",
    "fold before the first": b" X-A: 1\r\n",
    "space before the colon": b"X-A : 1\r\n",
    "space in the name": b"X A: 1\r\n",
    "no name": b": 1\r\n",
    "no colon": b"X-A\r\n",
    "no value": b"X-A:\r\n",
    "spaces for a value": b"X-A:   \t \r\n",
    "spaces around": b"X-A: \t 1 \t \r\n",
    "no space": b"X-A:1\r\n",
    "colon in the value": b"X-A: a:b\r\n",
    "bare LF": b"X-A: 1\nX-B: 2\r\n",
    "bare CR": b"X-A: 1\rX-B: 2\r\n",
    "CR before CRLF": b"X-A: 1\r\r\n",
    "NUL": b"X-A: a\x00b\r\n",
    "DEL": b"X-A: a\x7fb\r\n",
    "control": b"X-A: a\x01b\r\n",
    "vertical tab": b"X-A: a\x0bb\r\n",
    "high bytes": b"X-A: \xe4\xff\r\n",
    "UTF-8": "X-A: ä日\r\n".encode(),
    "high byte in a name": b"X-\xe4: 1\r\n",
    "all token characters": b"!#$%&'*+-.^_`|~09azAZ: 1\r\n",
    "delimiter in a name": b"X(A): 1\r\n",
    "slash in a name": b"X/A: 1\r\n",
    "the same twice": b"X-A: 1\r\nX-A: 2\r\n",
    "the same twice, other case": b"X-A: 1\r\nx-a: 2\r\n",
    "second host": b"Host: other\r\n",
    "connection close": b"Connection: close\r\n",
    "connection keep-alive": b"Connection: keep-alive\r\n",
    "connection Keep-Alive": b"Connection:  Keep-Alive \r\n",
    "connection both": b"Connection: keep-alive, close\r\n",
    "connection names a header": b"Connection: x-a\r\nX-A: 1\r\n",
    "connection empty": b"Connection:\r\n",
    "connection twice": b"Connection: keep-alive\r\nConnection: close\r\n",
    "proxy-connection": b"Proxy-Connection: keep-alive\r\n",
    "keep-alive": b"Keep-Alive: timeout=5\r\n",
    "upgrade": b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    "upgrade without connection": b"Upgrade: websocket\r\n",
    "expect": b"Expect: 100-continue\r\n",
    "expect something": b"Expect: rabbits\r\n",
    "te": b"TE: trailers\r\n",
    "trailer": b"Trailer: x-a\r\n",
    "identity": b"Content-Encoding: identity\r\n",
    "gzip": b"Content-Encoding: gzip\r\n",
    "content type": b"Content-Type: text/html; charset=utf-16\r\n",
    "cookie": b"Cookie: a=b; c=d\r\n",
    "forwarded": b"X-Forwarded-For: 1.2.3.4\r\n",
    "range": b"Range: bytes=0-3\r\n",
    "if-modified": b"If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
    "method override": b"X-HTTP-Method-Override: DELETE\r\n",
    "long value": b"X-A: " + b"a" * 4000 + b"\r\n",
    "longer value": b"X-A: " + b"a" * 8180 + b"\r\n",
    "too long value": b"X-A: " + b"a" * 9000 + b"\r\n",
    "long name": b"X-" + b"a" * 9000 + b": 1\r\n",
    "many": b"".join(b"X-%d: 1\r\n" % i for i in range(90)),
    "too many": b"".join(b"X-%d: 1\r\n" % i for i in range(400)),
}
LENGTHS: Mapping[str, bytes] = {
    "none": b"\r\n",
    "plain": b"Content-Length: 10\r\n\r\n",
    "twice": b"Content-Length: 10\r\nContent-Length: 10\r\n\r\n",
    "two": b"Content-Length: 10\r\nContent-Length: 3\r\n\r\n",
    "list": b"Content-Length: 10, 10\r\n\r\n",
    "other case": b"content-LENGTH: 10\r\n\r\n",
    "zeros": b"Content-Length: 0000010\r\n\r\n",
    "many zeros": b"Content-Length: " + b"0" * 30 + b"10\r\n\r\n",
    "plus": b"Content-Length: +10\r\n\r\n",
    "minus": b"Content-Length: -10\r\n\r\n",
    "hexadecimal": b"Content-Length: 0xa\r\n\r\n",
    "underscore": b"Content-Length: 1_0\r\n\r\n",
    "float": b"Content-Length: 10.0\r\n\r\n",
    "empty": b"Content-Length:\r\n\r\n",
    "letters": b"Content-Length: ten\r\n\r\n",
    "digits of others": "Content-Length: \uff11\uff10\r\n\r\n".encode(),
    "superscript": "Content-Length: \xb3\r\n\r\n".encode(),
    "spaces": b"Content-Length:  \t10\t \r\n\r\n",
    "space inside": b"Content-Length: 1 0\r\n\r\n",
    "space before the colon": b"Content-Length : 10\r\n\r\n",
    "folded": b"Content-Length:\r\n 10\r\n\r\n",
    "12 digits": b"Content-Length: 999999999999\r\n\r\n",
    "20 digits": b"Content-Length: 99999999999999999999\r\n\r\n",
    "beyond 64 bits": b"Content-Length: 18446744073709551626\r\n\r\n",
    "less than follows": b"Content-Length: 4\r\n\r\n",
    "more than the lane takes": b"Content-Length: 5000\r\n\r\n" + b"a" * 4990,
    "and chunked": b"Content-Length: 10\r\n" + CHUNKED,
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 10\r\n\r\n",
    "chunked": CHUNKED + b"a\r\n0123456789\r\n0\r\n\r\n",
    "chunked, extension": CHUNKED + b"a;x=y\r\n0123456789\r\n0\r\n\r\n",
    "chunked, trailer": CHUNKED + b"a\r\n0123456789\r\n0\r\nX-A: 1\r\n\r\n",
    "chunked, wrong size": CHUNKED + b"zz\r\n0123456789\r\n0\r\n\r\n",
    "chunked, space": b"Transfer-Encoding : chunked\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "chunked, tab": b"Transfer-Encoding:\tchunked\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\nContent-Length: 10\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\nContent-Length: 10\r\n\r\n",
    "bare LF at the end": b"Content-Length: 10\n\n",
    "LF CRLF": b"Content-Length: 10\n\r\n",
}
TARGETS = (
    b"/v2/models/m/infer",
    b"/v2/models/",
    b"/v2/models/m%2Finfer",
    b"/v2/models/%6d/infer",
    b"/v2/models/%",
    b"/v2/models/%zz/infer",
    b"/v2/models/m/../infer",
    b"/v2/models//infer",
    b"/v2/models/m/infer?",
    b"/v2/models/m?a=b&c",
    b"/v2/models/m?a=%20+",
    b"/v2/models/m#x",
    b"/v2/models/m?#",
    b"/v2/models/m;a=b",
    b'/v2/models/"m"',
    b"/v2/models/<m>",
    b"/v2/models/{m}",
    b"/v2/models/m|n",
    b"/v2/models/m\\n",
    b"/v2/models/m^n`",
    b"/v2/models/\xe4",
    "/v2/models/ä".encode(),
    b"/v2/models/m\x7f",
    b"/v2/models/m\t",
    b"/v2/models/m n",
    b"http://h/v2/models/m/infer",
    b"http://u:p@h:80/v2/models/m",
    b"//h/v2/models/m",
    b"*",
    b"h:80",
    b"v2/models/m",
    b"/v3",
    b"",
    b"/v2/models/http://x/",
    b"/v2/models/:80/",
    b"/v2/models/@h",
    b"/v2/models/" + b"a" * 7000,
    b"/v2/models/" + b"a" * 9000,
    b"/v2/models/m?" + b"a=b&" * 1500,
)
FIRST_LINES = (
    b"POST %b HTTP/1.1\r\n",
    b"POST  %b HTTP/1.1\r\n",
    b"POST %b  HTTP/1.1\r\n",
    b"POST %b HTTP/1.1 \r\n",
    b" POST %b HTTP/1.1\r\n",
    b"POST %b HTTP/1.0\r\n",
    b"POST %b HTTP/1.2\r\n",
    b"POST %b HTTP/2.0\r\n",
    b"POST %b http/1.1\r\n",
    b"POST %b HTTP/1.1\n",
    b"POST %b\r\n",
    b"POST\t%b HTTP/1.1\r\n",
    b"post %b HTTP/1.1\r\n",
    b"GET %b HTTP/1.1\r\n",
    b"HEAD %b HTTP/1.1\r\n",
    b"OPTIONS %b HTTP/1.1\r\n",
    b"CONNECT %b HTTP/1.1\r\n",
    b"POSTX %b HTTP/1.1\r\n",
    b"\r\nPOST %b HTTP/1.1\r\n",
    b"\nPOST %b HTTP/1.1\r\n",
    b"\r\n\r\n\r\nPOST %b HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nPOST %b HTTP/1.1\r\n",
)

CASES = {
    **{f"line: {name}": HEAD + line + LENGTHS["plain"] + BODY for name, line in LINES.items()},
    **{f"first header: {name}": HEAD.replace(b"Host: h\r\n", line + b"Host: h\r\n") + LENGTHS["plain"] + BODY
       for name, line in LINES.items()},
    **{f"length: {name}": HEAD + framing + BODY for name, framing in LENGTHS.items()},
    **{f"target {number}": b"POST " + target + b" HTTP/1.1\r\nHost: h\r\n" + LENGTHS["plain"] + BODY
       for number, target in enumerate(TARGETS)},
    **{f"first line {number}": line % b"/v2/models/m" + b"Host: h\r\n" + LENGTHS["plain"] + BODY
       for number, line in enumerate(FIRST_LINES)},
    "no host": PLAIN.replace(b"Host: h\r\n", b""),
    "empty host": PLAIN.replace(b"Host: h", b"Host:"),
    "odd host": PLAIN.replace(b"Host: h", b"Host: a b/c@d"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + PLAIN,
}  # fmt: skip


@pytest.mark.parametrize("before", [b"", PLAIN, PLAIN * 3], ids=["first", "second", "pipelined"])
async def test_awkward_requests_are_read_alike(before: bytes) -> None:
    house = House()
    for name, data in CASES.items():
        at = len(before)
        for cuts in ([], [at], [at + 5, at + len(data) - len(BODY) - 1]):
            try:
                await compare(house, before + data + PLAIN, cuts)
            except AssertionError as error:
                raise AssertionError(f"{name}, cut at {cuts}: {error}") from None
    await house.full.shutdown(0.001)


async def test_a_byte_at_a_time_is_read_alike() -> None:
    house = House()
    for data in (PLAIN, HEAD + LINES["obs-fold"] + LENGTHS["plain"] + BODY, HEAD + LENGTHS["chunked"]):
        await compare(house, data, list(range(len(data))))
    await house.full.shutdown(0.001)


# -- what nobody has thought of ------------------------------------------------------------------------------------

LINE = st.one_of(
    st.sampled_from(sorted(LINES.values(), key=len)[:-4]),
    st.builds(
        lambda name, colon, value, end: name + colon + value + end,
        st.one_of(
            st.sampled_from([b"X-A", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host", b"Expect"]),
            st.binary(max_size=6),
        ),
        st.sampled_from([b": ", b":", b" : ", b":\t", b"", b" "]),
        st.one_of(
            st.sampled_from([b"1", b"10", b"chunked", b"close", b"keep-alive", b"identity"]), st.binary(max_size=8)
        ),
        st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n", b"\r\n "]),
    ),
)
REQUEST = st.builds(
    lambda first, target, lines, framing, body: first % target + b"Host: h\r\n" + b"".join(lines) + framing + body,
    st.sampled_from([FIRST_LINES[0]] * 12 + list(FIRST_LINES)),
    st.sampled_from([TARGETS[0]] * 20 + list(TARGETS)),
    st.lists(LINE, max_size=3),
    st.sampled_from([LENGTHS["plain"]] * 12 + list(LENGTHS.values())),
    st.sampled_from([BODY] * 5 + [b"", PLAIN, b"0\r\n\r\n"]),
)
CHANGE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.binary(max_size=3))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.one_of(st.just(PLAIN), REQUEST), min_size=1, max_size=3),
    changes=st.lists(CHANGE, max_size=3),
    cuts=st.lists(st.floats(0, 1), max_size=3),
)
def test_any_bytes_are_read_alike(
    requests: list[bytes], changes: list[tuple[float, int, bytes]], cuts: list[float]
) -> None:
    data = b"".join(requests)
    for where, removed, added in changes:
        at = int(where * len(data))
        data = data[:at] + added + data[at + removed :]
    data += PLAIN

    async def scenario() -> None:
        house = House()
        await compare(house, data, [int(cut * len(data)) for cut in cuts])
        await house.full.shutdown(0.001)

    asyncio.run(scenario())


async def test_the_lane_takes_what_is_plain() -> None:
    """The comparison says nothing if everything is handed over."""
    house = House()
    data = PLAIN + HEAD + LINES["connection keep-alive"] + LENGTHS["plain"] + BODY
    assert await compare(house, data, []) == 2
    await house.full.shutdown(0.001)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut for cut in cuts if 0 < cut < len(data))})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]
