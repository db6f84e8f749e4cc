"""The load generator: closed-loop callers in a process of their own, so that the client is not what is measured.

One lean HTTP/1.1 client over raw sockets for every HTTP server, one grpc.aio client that neither encodes nor decodes
for the echo and for the core, and the SDK itself. Requests are prepared bytes. Prints one Sample as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, cast

import msgspec
import uvloop

CLUMP_S = 0.02


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement.

    Attributes:
        mode: ``http`` and ``grpc`` send ``request`` as it is; ``sdk`` sends its FP32 row through AsyncClient; ``raw``
            runs the model file at ``address`` in batches of ``callers`` rows (see ``benchmarks.raw``).
        address: ``host:port``, ``unix:/path``, an SDK target or a model file.
        request: file with the bytes to send.
        expected: file with the raw FP32 logits that must come back.
        callers: how many are waiting for an answer at any time, each on a connection of its own over HTTP.
        server_pid: process whose CPU time is read before and after; 0 for none.
    """

    mode: Literal["http", "grpc", "sdk", "raw"]
    address: str
    request: str
    expected: str = ""
    model: str = ""
    shape: tuple[int, ...] = ()
    callers: int
    warmup_s: float
    duration_s: float
    server_pid: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one measurement gave.

    Attributes:
        rows_per_s: answered rows a second.
        p50_ms, p99_ms: latency of a request.
        requests: answered in the measured window; ``answered_rows`` in all, warm-up included.
        cpu_us: CPU time of the server for one row, in microseconds; 0 where there is no server. Other processes on the
            machine change it far less than they change the rate.
    """

    rows_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    answered_rows: int
    cpu_us: float = 0.0


class WrongAnswer(RuntimeError):
    """The server refused, or answered something else than the model says."""


def sample_of(done: list[tuple[float, float]], *, after: float, rows: int = 1) -> Sample:
    """Return rate and percentiles from (ended, began) pairs, warm-up left out.

    Batched answers arrive in clumps. Counting from the first clump's end to the last one's keeps a slow model's rate
    from depending on whether the window's edge cut a clump.
    """
    counted = [pair for pair in done if pair[1] >= after]
    if len(counted) < 2:
        counted = done  # a model slower than the window: better a rough figure than none
    ends = sorted(ended for ended, _ in counted)
    latencies = sorted(ended - began for ended, began in counted)
    clump = min(latencies[len(latencies) // 2] / 4, CLUMP_S)
    since = sum(ended > ends[0] + clump for ended in ends)
    rate = since / (ends[-1] - ends[0]) if since else len(ends) / latencies[-1]
    return Sample(
        rows_per_s=rate * rows,
        p50_ms=1e3 * latencies[len(latencies) // 2],
        p99_ms=1e3 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
        requests=len(counted),
        answered_rows=len(done) * rows,
    )


class _HttpCaller(asyncio.Protocol):
    """Sends the same request again as soon as its answer is complete. Only reads bodies with a Content-Length."""

    def __init__(self, request: bytes, until: float, finished: asyncio.Future[list[tuple[float, float]]]) -> None:
        self._request = request
        self._until = until
        self._finished = finished
        self._done: list[tuple[float, float]] = []
        self._buffer = b""
        self._began = 0.0
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        split = buffer.find(b"\r\n\r\n")
        if split < 0:
            return
        head = buffer[:split].lower()
        at = head.find(b"content-length:")
        if not head.startswith(b"http/1.1 200") or at < 0:
            self._fail(WrongAnswer(f"not a 200 with a Content-Length: {buffer[:500]!r}"))
            return
        end = head.find(b"\r\n", at)
        size = int(head[at + 15 : end if end > 0 else None])
        if len(buffer) < split + 4 + size:
            return
        now = time.perf_counter()
        self._done.append((now, self._began))
        self.body = buffer[split + 4 :]
        self._buffer = b""
        if now < self._until:
            self._send()
        elif not self._finished.done():
            self._finished.set_result(self._done)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(WrongAnswer(f"the server closed the connection: {exc}"))

    def _fail(self, error: WrongAnswer) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)
            self._transport.close()


async def _http_call(spec: Spec, request: bytes, until: float) -> tuple[list[tuple[float, float]], bytes]:
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[list[tuple[float, float]]] = loop.create_future()
    caller = _HttpCaller(request, until, finished)
    if spec.address.startswith("unix:"):
        await loop.create_unix_connection(lambda: caller, spec.address.removeprefix("unix:"))
    else:
        host, _, port = spec.address.rpartition(":")
        await loop.create_connection(lambda: caller, host, int(port))
    return await finished, caller.body


async def _http(spec: Spec, request: bytes) -> Sample:
    _, body = await _http_call(spec, request, until=0.0)
    _check(spec, body)
    started = time.perf_counter()
    until = started + spec.warmup_s + spec.duration_s
    results = await asyncio.gather(*(_http_call(spec, request, until) for _ in range(spec.callers)))
    return sample_of([pair for done, _ in results for pair in done], after=started + spec.warmup_s)


async def _loop(spec: Spec, call: Callable[[], Awaitable[object]]) -> Sample:
    """Run ``spec.callers`` tasks that call again as soon as they are answered."""
    done: list[tuple[float, float]] = []
    started = time.perf_counter()
    until = started + spec.warmup_s + spec.duration_s

    async def caller() -> None:
        began = time.perf_counter()
        while began < until:
            await call()
            ended = time.perf_counter()
            done.append((ended, began))
            began = ended

    async with asyncio.TaskGroup() as group:
        for _ in range(spec.callers):
            group.create_task(caller())
    return sample_of(done, after=started + spec.warmup_s)


async def _grpc(spec: Spec, request: bytes) -> Sample:
    import grpc  # only where it is measured: the HTTP client stays small

    from benchmarks.echo import METHOD

    def as_it_is(data: bytes) -> bytes:
        return data

    async with grpc.aio.insecure_channel(spec.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        infer = channel.unary_unary(METHOD, as_it_is, as_it_is)
        _check(spec, await infer(request))
        return await _loop(spec, lambda: infer(request))


async def _sdk(spec: Spec, request: bytes) -> Sample:
    import numpy as np

    from penstock import AsyncClient

    row = np.frombuffer(request, np.float32).reshape(spec.shape)
    async with AsyncClient(spec.address) as client:
        answer = await client.infer(spec.model, row)
        _check(spec, answer.outputs["logits"].tobytes())
        return await _loop(spec, lambda: client.infer(spec.model, row))


def _check(spec: Spec, body: bytes) -> None:
    """Check that the answer ends with the model's logits, whatever frames them; batches and machines round
    differently."""
    if not spec.expected:
        return
    import numpy as np

    expected = np.frombuffer(Path(spec.expected).read_bytes(), np.float32)
    if len(body) < expected.nbytes:
        raise WrongAnswer(f"{len(body)} bytes came back, {expected.nbytes} are the logits alone")
    got = np.frombuffer(body[len(body) - expected.nbytes :], np.float32)
    if not np.allclose(got, expected, rtol=1e-3, atol=1e-3):
        raise WrongAnswer(f"the answer does not end with the model's logits: {got[:4]}... against {expected[:4]}...")


def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    measure = {"http": _http, "grpc": _grpc, "sdk": _sdk}[spec.mode]
    print(msgspec.json.encode(uvloop.run(measure(spec, Path(spec.request).read_bytes()))).decode())


if __name__ == "__main__":
    main()
