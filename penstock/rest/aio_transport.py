"""The asyncio client's HTTP, over aiohttp: the only module of the SDK that imports it, and only when it is used."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

from penstock.errors import DeadlineExceeded, Internal, TooLarge, Unavailable, missing_extra
from penstock.rest.exchange import (
    MAX_BODY_BYTES,
    Answer,
    Exchange,
    get_exchange,
    infer_exchange,
    model_path,
    post_exchange,
    read_body,
    read_infer,
    read_metadata,
    read_probe,
)
from penstock.rest.mistaken import advice
from penstock.wire.addresses import Target
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata
from penstock.wire.proxies import Proxy, proxy_for
from penstock.wire.tls import Tls, context, from_environment, trouble

try:
    import aiohttp
except ImportError as error:  # the library is behind an extra
    raise missing_extra("aiohttp", "http", "AsyncClient over http:// and unix://") from error


class AioRestTransport:
    """OIP over HTTP. Must be made in a running event loop."""

    def __init__(
        self, target: Target, *, token: str | None = None, tls: Tls | None = None, max_connections: int = 128
    ) -> None:
        self._token = token
        self._session, self._base = _session(target, max_connections, tls)

    async def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        return read_infer(await self._exchange(infer_exchange(request, timeout_s, self._token), timeout_s))

    async def metadata(self, model: str, version: str, timeout_s: float) -> ModelMetadata:
        return read_metadata(await self._get(model_path(model, version), timeout_s))

    async def is_live(self, timeout_s: float) -> bool:
        return read_probe(await self._get("/v2/health/live", timeout_s))

    async def is_ready(self, timeout_s: float) -> bool:
        return read_probe(await self._get("/v2/health/ready", timeout_s))

    async def model_ready(self, model: str, version: str, timeout_s: float) -> bool:
        return read_probe(await self._get(model_path(model, version, "ready"), timeout_s))

    async def post(self, path: str, body: bytes, timeout_s: float, request_id: str) -> bytes:
        """Send JSON and return what comes back.

        Raises:
            PenstockError: what the server said no with, or how it was not reached.
        """
        exchange = post_exchange(path, body, timeout_s, self._token, request_id=request_id)
        return read_body(await self._exchange(exchange, timeout_s))

    async def stream(self, path: str, body: bytes, timeout_s: float, request_id: str) -> AsyncGenerator[bytes, None]:
        """Send JSON and return what comes back in pieces, as they come. Closing the generator before its end closes the
        connection, which is how the server hears that nobody reads on.

        Raises:
            PenstockError: as :meth:`post`; the generator raises it, too, for what happens later.
        """
        pieces = self._pieces(post_exchange(path, body, timeout_s, self._token, request_id=request_id), timeout_s)
        await anext(pieces)  # the status; closing a generator that has not begun would give nothing back
        return pieces

    async def close(self) -> None:
        await self._session.close()

    async def _pieces(self, exchange: Exchange, timeout_s: float) -> AsyncGenerator[bytes, None]:
        async with self._answered(exchange, timeout_s) as response:
            if response.status != 200:
                read_body(await _answer_of(response))
                raise Internal(f"the server answered {response.status} where a stream was expected")
            yield b""
            total = 0
            async for piece in response.content.iter_any():
                total += len(piece)
                if total > MAX_BODY_BYTES:
                    raise _too_large()
                yield piece

    async def _get(self, path: str, timeout_s: float) -> Answer:
        return await self._exchange(get_exchange(path, timeout_s, self._token), timeout_s)

    async def _exchange(self, exchange: Exchange, timeout_s: float) -> Answer:
        async with self._answered(exchange, timeout_s) as response:
            return await _answer_of(response)

    @asynccontextmanager
    async def _answered(self, exchange: Exchange, timeout_s: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and say in errors of ours what happens to it and its answer."""
        try:
            async with self._session.request(
                exchange.method,
                self._base + exchange.path,
                headers=exchange.headers,
                data=exchange.body or None,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                yield response
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:.4g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(advice(str(error)) or trouble(str(error)) or f"cannot reach it: {error}") from error


class AioStreams:
    """POSTs whose answers come in pieces. Must be made in a running event loop."""

    def __init__(
        self,
        target: Target,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        connect_timeout_s: float,
        max_connections: int = 128,
    ) -> None:
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._connect_timeout_s = connect_timeout_s
        self._session, self._base = _session(target, max_connections, tls)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """Yield the body of a 200 as it comes. Closing the generator closes the connection, unless the body has ended:
        that is how the server hears that nobody reads on.

        Raises:
            Unavailable: it cannot be reached, or the connection broke. RefusedStream: another status.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s)
        try:
            async with self._session.post(
                self._base + path,
                data=body,
                headers={**headers, **self._headers},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise RefusedStream(await _answer_of(response))
                async for piece in response.content.iter_any():
                    yield piece
        except aiohttp.ClientPayloadError as error:  # whose own words are about chunks and headers
            raise Unavailable("the connection broke before the end of the answer") from error
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            said = advice(str(error)) or trouble(str(error))
            raise Unavailable(said or f"cannot reach it: {str(error) or type(error).__name__}") from error

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._session.close()


class RefusedStream(Exception):
    """A server answered with something else than a stream. What it means is the caller's to know."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer


def _session(target: Target, max_connections: int, tls: Tls | None) -> tuple[aiohttp.ClientSession, str]:
    """Make a session and the beginning of its URLs."""
    connector: aiohttp.BaseConnector
    proxy: Proxy | None = None
    if target.scheme != "unix":
        proxy = proxy_for(target.scheme, target.host, target.port, os.environ)
    if target.scheme == "unix":
        connector, base = aiohttp.UnixConnector(path=target.path, limit=max_connections), "http://localhost"
    else:
        trust = context(tls or from_environment()) if target.is_secure else True
        connector, base = aiohttp.TCPConnector(limit=max_connections, ssl=trust), str(target)
    session = aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=None if proxy is None else proxy.url,
    )
    return session, base


async def _answer_of(response: aiohttp.ClientResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(status=response.status, headers=headers, body=await _read(response))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if (response.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    if response.content_length is not None:
        return await response.read()
    chunks = []
    total = 0
    async for chunk in response.content.iter_any():
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large() -> TooLarge:
    return TooLarge(f"the server's answer is larger than {MAX_BODY_BYTES} bytes", limit_bytes=MAX_BODY_BYTES)
