"""``python -m benchmarks.overload``: what becomes of requests with deadlines where many more come than can be served.

Real core, real gRPC. First the rate that it serves when asked by few callers, then several times that rate for a few
seconds, however fast answers come. Prints figures, asserts nothing.
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
from benchmarks.servers import Server, choose_pins, running
from penstock.rest.connection import ask
from penstock.rpc import codec
from penstock.wire.inference import InferRequest

CALLERS, ROW_STEPS, LONG_SHARE, LONG_TIMES = 8, 100, 0.1, 8
Call = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended: "OK" or the name of a gRPC status, and after how many seconds."""

    status: str
    took_s: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--times", type=float, default=5.0, help="of the rate that can be served (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of overload (default 5)")
    parser.add_argument("--deadline-s", type=float, default=0.5, help="of each request (default 0.5)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        running(Path(scratch), choose_pins(pin=False)) as servers,
    ):
        core = servers.core([models.uneven(Path(scratch) / "uneven", row_steps=ROW_STEPS).layout])
        asyncio.run(_measure(core, options.times, options.seconds, options.deadline_s))
    return 0


async def _measure(core: Server, times: float, seconds: float, deadline_s: float) -> None:
    draw = random.Random(1)
    short, long = (_request(ROW_STEPS * steps) for steps in (1, LONG_TIMES))
    async with grpc.aio.insecure_channel(core.endpoints["grpc"]) as channel:
        infer = channel.unary_unary(METHOD, bytes, bytes)

        async def call(timeout_s: float) -> None:
            await infer(long if draw.random() < LONG_SHARE else short, timeout=timeout_s)

        await _until_served(call)
        served_per_s = await _served_per_s(call, seconds)
        ran_before = _rows_run(core)
        outcomes = await _flood(call, times * served_per_s, seconds, deadline_s)
    await asyncio.sleep(1.0)  # what runs when the last caller leaves is counted when it ends
    print(f"{'served to few callers':32}{served_per_s:8.0f} rows/s")
    _show(outcomes, ran=_rows_run(core) - ran_before)


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


async def _flood(call: Call, per_s: float, seconds: float, deadline_s: float) -> Sequence[Outcome]:
    """Send at a rate, whatever comes back."""

    async def one() -> Outcome:
        began = time.perf_counter()
        try:
            await call(deadline_s)
        except grpc.aio.AioRpcError as error:
            return Outcome(status=error.code().name, took_s=time.perf_counter() - began)
        return Outcome(status="OK", took_s=time.perf_counter() - began)

    began = time.perf_counter()
    sent: list[asyncio.Task[Outcome]] = []
    while (passed := time.perf_counter() - began) < seconds:
        sent += [asyncio.create_task(one()) for _ in range(int(passed * per_s) - len(sent))]
        await asyncio.sleep(0.002)
    return await asyncio.gather(*sent)


def _show(outcomes: Sequence[Outcome], *, ran: int) -> None:
    answered = [outcome.took_s for outcome in outcomes if outcome.status == "OK"]
    print(f"{'sent':32}{len(outcomes):8}")
    print(f"{'answered in time':32}{len(answered):8} median {1e3 * median(answered or [0.0]):.0f} ms")
    print(f"{'ran':32}{ran:8} for nobody: {(ran - len(answered)) / max(ran, 1):.1%}")
    for status in sorted({outcome.status for outcome in outcomes} - {"OK"}):
        took_s = [outcome.took_s for outcome in outcomes if outcome.status == status]
        print(f"{status:32}{len(took_s):8} median {1e3 * median(took_s):.1f} ms")


def _rows_run(core: Server) -> int:
    text = ask(f"http://{core.endpoints['http']}", "GET", "/metrics", timeout_s=30.0).body.decode()
    return sum(int(float(rows)) for rows in re.findall(r"^penstock_batch_rows_sum\S* (\S+)$", text, re.M))


def _request(steps: int) -> bytes:
    row = np.full((1, 4), steps, np.float32)
    return codec.encode_request(InferRequest(model="uneven", inputs={"x": row})).SerializeToString()


if __name__ == "__main__":
    raise SystemExit(main())
