"""The mark to reach: one file of aiohttp and onnxruntime, as fast as such a file can be and with no checks at all.

Raw little-endian FP32 in, raw logits out; greedy batching (whatever waits goes, nothing waits for company); uvloop.
It has no names, versions, deadlines, limits, metrics, certificates or errors, which is what Penstock's cost is
measured against. Written for the benchmark; nobody should serve with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uvloop
from aiohttp import web
from numpy.typing import NDArray

Row = NDArray[np.float32]


class Greedy:
    """Everything that waits is one batch. Tiny models run in the event loop, larger ones in one thread."""

    def __init__(self, model: Path, *, max_batch: int, in_thread: bool) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.shape = (1, *self._session.get_inputs()[0].shape[1:])
        self._max_batch = max_batch
        self._thread = ThreadPoolExecutor(1) if in_thread else None
        self._waiting: list[tuple[Row, asyncio.Future[Row]]] = []
        self._is_scheduled = False

    def infer(self, row: Row) -> asyncio.Future[Row]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Row] = loop.create_future()
        self._waiting.append((row, answer))
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._flush)
        return answer

    def _flush(self) -> None:
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        rows = np.concatenate([row for row, _ in batch]) if len(batch) > 1 else batch[0][0]
        answers = [answer for _, answer in batch]
        if self._thread is None:
            self._give(answers, self._run(rows))
        else:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._thread, self._run, rows)
            running.add_done_callback(lambda done: self._give(answers, done.result()))

    def _run(self, rows: Row) -> Row:
        logits: Row = self._session.run(None, {"x": rows})[0]
        return logits

    def _give(self, answers: list[asyncio.Future[Row]], logits: Row) -> None:
        for index, answer in enumerate(answers):
            if not answer.done():
                answer.set_result(logits[index : index + 1])
        self._is_scheduled = bool(self._waiting)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)


async def serve(model: Path, socket: Path, *, max_batch: int, in_thread: bool) -> None:
    """Serve on a free loopback port and on a unix socket until killed; print where, as one line of JSON."""
    greedy = Greedy(model, max_batch=max_batch, in_thread=in_thread)

    async def infer(request: web.Request) -> web.Response:
        row = np.frombuffer(await request.read(), np.float32).reshape(greedy.shape)
        return web.Response(body=(await greedy.infer(row)).tobytes())

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/infer", infer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    tcp = web.TCPSite(runner, "127.0.0.1", 0)
    await tcp.start()
    await web.UnixSite(runner, str(socket)).start()
    _, port = runner.addresses[0]
    print(json.dumps({"http": f"127.0.0.1:{port}", "socket": str(socket)}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--in-thread", action="store_true", help="run the model in one thread, not in the event loop")
    options = parser.parse_args()
    uvloop.run(serve(options.model, options.socket, max_batch=options.max_batch, in_thread=options.in_thread))


if __name__ == "__main__":
    main()
