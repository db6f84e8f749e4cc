"""``python -m benchmarks.overload``: what becomes of requests where many more come than can be served.

Real core, real gRPC. First the rate that it serves when asked by few callers, then several times that rate for a few
seconds, however fast answers come: once with deadlines, once without. Prints figures, asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from benchmarks import models
from benchmarks.echo import METHOD
from benchmarks.servers import Server, Servers, choose_pins, running
from penstock.rest.connection import ask
from penstock.rpc import codec
from penstock.rpc.status import OUR_PUSHBACK, PUSHBACK
from penstock.wire.inference import InferRequest

CALLERS, ROW_STEPS, LONG_TIMES = 8, 100, 8
QUEUE_ROWS = 256  # a longer queue is drained when the overload is over, and nothing is learned
Call = Callable[[float | None], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended: "OK" or the name of a gRPC status, after how many seconds, and whether with a hint when to
    come back."""

    status: str
    took_s: float
    ended_at: float
    has_hint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What became of requests under overload.

    Attributes:
        served_per_s: rows, when few callers asked.
        goodput: rows answered a second under overload, as a part of that.
        ran: rows that were executed.
        ok: those that were answered in time, as the core counts; callers here may be late to hear it.
    """

    served_per_s: float
    goodput: float
    outcomes: Sequence[Outcome]
    ran: int
    ok: int

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "OK"]

    @property
    def refused(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != "OK"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--times", type=float, default=5.0, help="of the rate that can be served (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of overload (default 5)")
    parser.add_argument("--deadline-s", type=float, default=0.5, help="of each request with one (default 0.5)")
    parser.add_argument("--long-share", type=float, default=0.1, help=f"that takes {LONG_TIMES} times as long (0.1)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        running(Path(scratch), choose_pins(pin=False)) as servers,
    ):
        for deadline_s in (options.deadline_s, None):
            show(overload(servers, options.times, options.seconds, deadline_s, options.long_share), deadline_s)
    return 0


def overload(servers: Servers, times: float, seconds: float, deadline_s: float | None, long_share: float) -> Overload:
    """Start a core and ask it for more than it can serve."""
    name = f"overload-{deadline_s}"
    model = models.uneven(servers.directory / name, row_steps=ROW_STEPS)
    core = servers.core([model.layout], name=name, config=f"[serving]\nmax_queue_rows = {QUEUE_ROWS}\n")
    return asyncio.run(_measure(core, times, seconds, deadline_s, long_share))


async def _measure(core: Server, times: float, seconds: float, deadline_s: float | None, long_share: float) -> Overload:
    draw = random.Random(1)
    short, long = (_request(ROW_STEPS * steps) for steps in (1, LONG_TIMES))
    async with grpc.aio.insecure_channel(core.endpoints["grpc"]) as channel:
        infer = channel.unary_unary(METHOD, bytes, bytes)

        async def call(timeout_s: float | None) -> None:
            await infer(long if draw.random() < long_share else short, timeout=timeout_s)

        await _until_served(call)
        served_per_s = await _served_per_s(call, min(seconds, 10.0))
        ran_before, ok_before = _rows_run(core), _rows_ok(core)
        began = time.perf_counter()
        outcomes = await _flood(call, times * served_per_s, seconds, deadline_s)
    await asyncio.sleep(1.0)  # what runs when the last caller leaves is counted when it ends
    answered = [outcome.ended_at for outcome in outcomes if outcome.status == "OK"]
    goodput = len(answered) / max(max(answered, default=0.0) - began, seconds) / served_per_s
    ran, ok = _rows_run(core) - ran_before, _rows_ok(core) - ok_before
    return Overload(served_per_s=served_per_s, goodput=goodput, outcomes=outcomes, ran=ran, ok=ok)


async def _until_served(call: Call) -> None:
    for _ in range(300):
        try:
            return await call(10.0)
        except grpc.RpcError:
            await asyncio.sleep(0.1)
    raise SystemExit("the core did not load the model")


async def _served_per_s(call: Call, seconds: float) -> float:
    until, done = time.perf_counter() + seconds, 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call(60.0)
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return done / seconds


async def _flood(call: Call, per_s: float, seconds: float, deadline_s: float | None) -> Sequence[Outcome]:
    """Send at a rate, whatever comes back."""

    async def one() -> Outcome:
        began = time.perf_counter()
        try:
            await call(deadline_s)
        except grpc.aio.AioRpcError as error:
            now, hints = time.perf_counter(), repr(error.trailing_metadata())
            has_hint = PUSHBACK in hints or OUR_PUSHBACK in hints
            return Outcome(status=error.code().name, took_s=now - began, ended_at=now, has_hint=has_hint)
        now = time.perf_counter()
        return Outcome(status="OK", took_s=now - began, ended_at=now)

    began = time.perf_counter()
    sent: list[asyncio.Task[Outcome]] = []
    while (passed := time.perf_counter() - began) < seconds:
        sent += [asyncio.create_task(one()) for _ in range(int(passed * per_s) - len(sent))]
        await asyncio.sleep(0.002)
    return await asyncio.gather(*sent)


def show(found: Overload, deadline_s: float | None) -> None:
    """Print what was found."""
    answered = found.answered
    print(f"\n{'without deadlines' if deadline_s is None else f'with deadlines of {deadline_s:g} s'}")
    print(f"{'served to few callers':32}{found.served_per_s:8.0f} rows/s, under overload {found.goodput:.0%} of that")
    print(f"{'sent':32}{len(found.outcomes):8}")
    print(f"{'answered in time':32}{len(answered):8} median {1e3 * _median_s(answered):.0f} ms")
    print(f"{'ran':32}{found.ran:8} for nobody: {(found.ran - found.ok) / max(found.ran, 1):.1%}")
    for status in sorted({outcome.status for outcome in found.refused}):
        some = [outcome for outcome in found.refused if outcome.status == status]
        hints = sum(outcome.has_hint for outcome in some) / len(some)
        print(f"{status:32}{len(some):8} median {1e3 * _median_s(some):.1f} ms, with a hint: {hints:.0%}")


def _median_s(outcomes: Sequence[Outcome]) -> float:
    return median([outcome.took_s for outcome in outcomes] or [0.0])


def _rows_run(core: Server) -> int:
    return _summed(core, r"penstock_batch_rows_sum\S*")


def _rows_ok(core: Server) -> int:
    return _summed(core, r'penstock_requests_total{[^}]*code="ok"[^}]*}')  # of one row each


def _summed(core: Server, series: str) -> int:
    text = ask(f"http://{core.endpoints['http']}", "GET", "/metrics", timeout_s=30.0).body.decode()
    return sum(int(float(value)) for value in re.findall(rf"^{series} (\S+)$", text, re.M))


def _request(steps: int) -> bytes:
    row = np.full((1, 4), steps, np.float32)
    return codec.encode_request(InferRequest(model="uneven", inputs={"x": row})).SerializeToString()


if __name__ == "__main__":
    raise SystemExit(main())
