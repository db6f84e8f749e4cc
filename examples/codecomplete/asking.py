"""Ask for completions as an application does, in a stream, and note what came when; and count the bytes that go up."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from penstock.rest.connection import UnixConnection

MODEL = "codecomplete"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        first_s: from asking to the first token.
        gaps_s: between parts after the first.
        tokens: of the answer, the one that ended it included.
        prompt_tokens: that had to be computed.
        account: who answered, and why.
    """

    text: str
    first_s: float
    gaps_s: tuple[float, ...]
    tokens: int
    prompt_tokens: int
    account: dict[str, Any]

    @property
    def is_clouds(self) -> bool:
        return bool(self.account["served_by"] == "cloud")


class Asker:
    """One connection to an agent (``unix:///path``) or a core (``http://host:port``)."""

    def __init__(self, server: str) -> None:
        url = urlsplit(server)
        self._connection: http.client.HTTPConnection = (
            UnixConnection(url.path, _TIMEOUT_S)
            if url.scheme == "unix"
            else http.client.HTTPConnection(str(url.hostname), url.port, timeout=_TIMEOUT_S)
        )

    def ask(self, prompt: str, **ours: Any) -> Completion:
        """Ask in the certified way: no sampling, and the model's own stops and limit.

        Args:
            ours: parameters of Penstock, such as ``local_only``.

        Raises:
            RuntimeError: refused, or the answer ended in an error.
        """
        body = {"model": MODEL, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(body | ({"penstock": ours} if ours else {}))
        began = time.perf_counter()
        self._connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(4096).decode()}")
        usage: dict[str, Any] = {}
        account: dict[str, Any] = {}
        text, came = "", list[float]()
        for event in _events(response):
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            for choice in event["choices"]:
                came.append(time.perf_counter())
                text += choice["text"]
            account = event.get("penstock") or account
            usage = event.get("usage") or usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Completion(
            text=text.strip(),
            first_s=came[0] - began,
            gaps_s=tuple(later - earlier for earlier, later in itertools.pairwise(came)),
            tokens=usage["completion_tokens"],
            prompt_tokens=usage["prompt_tokens"] - cached,
            account=account,
        )

    def close(self) -> None:
        self._connection.close()


class Meter:
    """A relay in front of a server that counts the bytes which go up through it."""

    def __init__(self, target: str) -> None:
        """Listen on a free port of the loopback address, for ``target``, a URL."""
        url = urlsplit(target)
        self._target = (str(url.hostname), url.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes_up = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                below, _ = self._listener.accept()
                above = socket.create_connection(self._target)
            except OSError:  # closed, or nobody is there any more
                return
            for one in (below, above):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=(below, above, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(above, below, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65_536):
                self.bytes_up += len(part) if is_up else 0
                sink.sendall(part)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Read server-sent events to the end of the body."""
    for line in response:
        if line.startswith(b"data: ") and line != b"data: [DONE]\n":
            yield json.loads(line[len(b"data: ") :])
