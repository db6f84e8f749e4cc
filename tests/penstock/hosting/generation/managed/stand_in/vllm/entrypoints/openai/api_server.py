"""A stand-in for vLLM: started as vLLM is, with a process of its own as vLLM has, and saying what vLLM was heard to.

Answers a prompt with its own tokens, over and over, or with those that ``answers.json`` beside the model gives for it.
The first id of a prompt may ask for more: see ``WAYS``. ``stand_in.json`` beside the model says how it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[4] / "recorded"
WAYS = {900: "hang", 901: "die", 902: "fail"}
"""Prompts that begin with these: it makes no token for anybody any more; it is killed; it ends with an error."""
REPLAYS = {
    910: "abort",
    911: "rank_death",
    912: "killed",
    913: "full",
    914: "success",
    915: "cached",
    916: "full_in_stream",
    917: "out_of_vocabulary",
}
"""Prompts that begin with these are answered with what was recorded, in pieces of random sizes."""
STEP_S = 0.002


class Server:
    """One model, as ``arguments`` have it."""

    def __init__(self, arguments: argparse.Namespace, rank: subprocess.Popen[bytes]) -> None:
        self.arguments, self.rank = arguments, rank
        self.running = 0
        self.is_hung = False
        self.is_ending = asyncio.Event()
        answers = Path(arguments.model) / "answers.json"
        self.answers: list[list[list[int]]] = json.loads(answers.read_text()) if answers.is_file() else []

    async def serve(self) -> None:
        server = await asyncio.start_unix_server(self.connected, arguments.uds)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.is_ending.set)
        print(f"listening, rank {self.rank.pid}", flush=True)
        await self.is_ending.wait()
        while self.running and self.arguments.shutdown_timeout:  # noqa: ASYNC110, a program of a page
            await asyncio.sleep(STEP_S)
        server.close()
        self.rank.kill()
        print("ended in order", flush=True)
        os._exit(0)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, _ = head.split(b" ", 1)
                sizes = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(sizes[0])) if sizes else b"{}"
                if method == b"GET":
                    text = b"vllm:num_requests_running %d\n" % self.running
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
                    continue
                await self.answered(json.loads(body), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answered(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        gone = asyncio.ensure_future(reader.read(1))
        talk = asyncio.ensure_future(self.talk(body, writer))
        try:
            await asyncio.wait({gone, talk}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.running -= 1
            talk.cancel()
            gone.cancel()
        raise ConnectionError  # one answer a connection

    async def talk(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        prompt = body["prompt"]
        way = WAYS.get(prompt[0])
        self.is_hung = self.is_hung or way == "hang"
        if self.is_hung:
            await asyncio.sleep(1e6)
        if how.get("fails_at_first"):
            raise SystemExit(f"KeyError: {how['fails_at_first']}")
        if way == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "fail":
            raise SystemExit("RuntimeError: the engine core has died")
        if prompt[0] in REPLAYS and body["max_tokens"] > 1:
            await replay((RECORDED / f"{REPLAYS[prompt[0]]}.http").read_bytes(), writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        wanted = next((answer for asked, answer in self.answers if asked == prompt), None)
        tokens = [(wanted or prompt)[at % len(wanted or prompt)] for at in range(body["max_tokens"])]
        text = "" if wanted else "".join(map(chr, tokens))
        cuts = [(text.find(stop), stop) for stop in body.get("stop", ()) if stop in text]
        if cuts:  # what may become a stop string is held back, as vLLM does
            at, stop = min(cuts)
            tokens, text = tokens[: at + len(stop)], text[:at]
        for at, token in enumerate(tokens):
            finish = ("stop" if cuts else "length") if at == len(tokens) - 1 else None
            writer.write(event({"choices": [choice(text[at : at + 1], token, finish)]}))
            await writer.drain()
            await asyncio.sleep(STEP_S)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        writer.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await writer.drain()


async def replay(recorded: bytes, writer: asyncio.StreamWriter) -> None:
    while recorded:
        size = random.choice((1, 7, 60, 400, 4000))
        writer.write(recorded[:size])
        await writer.drain()
        recorded = recorded[size:]
        await asyncio.sleep(0)


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def choice(text: str, token: int, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "token_ids": [token], "finish_reason": finish, "logprobs": None}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model", "served-model-name", "uds", "dtype", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("max-num-seqs", "tensor-parallel-size", "pipeline-parallel-size", "shutdown-timeout"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("max-model-len", "kv-cache-memory-bytes", "data-parallel-size"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("enforce-eager", "enable-prompt-tokens-details", "disable-uvicorn-access-log"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--say")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    told = Path(arguments.model) / "stand_in.json"
    how = json.loads(told.read_text()) if told.is_file() else {}
    print("x" * how.get("says_bytes", 0), flush=True)
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
    print(f"rank {rank.pid} home {os.environ['HOME']} {sorted(os.environ)}", flush=True)
    if how.get("fails"):
        print(
            f"(EngineCore pid=1) pydantic_core.ValidationError: 1 validation error\n(EngineCore pid=1)   {how['fails']}"
        )
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    if how.get("hangs"):
        signal.pause()
    asyncio.run(Server(arguments, rank).serve())
