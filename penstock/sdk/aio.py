"""The asyncio client. Over gRPC, concurrent calls for the same model become one request (``penstock.sdk.coalesce``).

What a target needs is imported when it is first used: grpcio for ``grpc://``, aiohttp for ``http://`` and ``unix://``.
Connections belong to the event loop in which the first call was made; a call in another one is refused.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar, Unpack, cast

import numpy as np

from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError, Unavailable, copy_of
from penstock.sdk import call
from penstock.sdk.call import DEFAULT_TIMEOUT_S, InferResult, Inputs
from penstock.sdk.coalesce import CoalesceLimits, Coalescer, MergeQueue, kind_of
from penstock.sdk.text_streams import AsyncTextStream, aio_text_transport
from penstock.sdk.texts import Message, Prompt, Text, TextCall, TextOptions, TextPart, TextReader, text_call
from penstock.sdk.transports import AioTransport, open_aio_transport
from penstock.wire.addresses import located, parse_target
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata, Parameter
from penstock.wire.tensors import Array
from penstock.wire.tls import Tls

_T = TypeVar("_T")
_Arrays = Mapping[str, Array]
_STALE_S = 1.0  # metadata older than this is asked for again before an input is refused on its word


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call of :meth:`AsyncClient.infer`; ``deadline`` is on the loop's clock."""

    model: str
    version: str
    inputs: Inputs
    outputs: tuple[str, ...]
    priority: int
    parameters: Mapping[str, Parameter]
    request_id: str
    deadline: float
    timeout_s: float

    def request(self, arrays: Mapping[str, Array]) -> InferRequest:
        return call.make_request(
            self.model,
            arrays,
            version=self.version,
            outputs=self.outputs,
            priority=self.priority,
            parameters=self.parameters,
            request_id=self.request_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What belongs to one event loop."""

    transport: AioTransport
    coalescer: Coalescer
    loop: asyncio.AbstractEventLoop


class AsyncClient:
    """Calls one server.

    Args:
        target: ``grpc://host:port``, ``http://host:port`` or ``unix:///path/to/socket``; over TLS ``grpcs://host`` or
            ``https://host``. HTTP may have a path, which all of the server's paths then begin with.
        timeout: seconds that a call may take by default, all tries together.
        token: sent as a bearer token.
        tls: which authorities to trust and what to show over TLS; None for what PENSTOCK_CA_FILE,
            PENSTOCK_CLIENT_CERT and PENSTOCK_CLIENT_KEY say, and without those for what this machine trusts.
        retries: further tries of what the server refused with a hint when to come back.
        coalesce: merge concurrent calls over gRPC. A call with ``request_id`` or ``parameters`` is never merged, and
            over HTTP none is: an agent gives each request its own account of who answered and why.
        max_rows: rows of a merged request at most.
        max_in_flight: merged requests under way at once, per model and kind of input.

    Raises:
        InvalidInput: the target is none of these. ConfigError: a file of ``tls``.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        token: str | None = None,
        tls: Tls | None = None,
        retries: int = 2,
        coalesce: bool = True,
        max_rows: int = 512,
        max_in_flight: int = 2,
    ) -> None:
        self._target = parse_target(target)
        self._timeout_s = call.check_timeout(timeout)
        self._token, self._tls = token, tls
        self._retries = retries
        self._merges = coalesce and self._target.is_grpc
        self._limits = CoalesceLimits(max_rows=max_rows, max_in_flight=max_in_flight)
        self._opened: _Opened | None = None
        self._is_closed = False
        self._known: dict[tuple[str, str], tuple[ModelMetadata, float]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[ModelMetadata]] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._target)!r})"

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        labels: bool = False,
    ) -> InferResult:
        """Run a model on a batch; arguments and errors are those of :meth:`penstock.Client.infer`.

        An array must not be changed until the answer is there: a merged request is put together after this returns
        to the event loop.
        """
        opened = self._here()
        timeout_s = self._timeout_s if timeout is None else call.check_timeout(timeout)
        deadline = opened.loop.time() + timeout_s
        merges = self._merges and not parameters and not request_id
        key = kind_of(model, version, inputs, outputs, priority) if merges else None
        queue = opened.coalescer.queue(key)
        if queue is not None and not labels:  # nearly every row: nothing here costs more than a dictionary look-up
            arrays = {queue.names[0]: inputs} if isinstance(inputs, np.ndarray) else dict(cast("_Arrays", inputs))
            return await self._infer_merged(queue, arrays, deadline, timeout_s)
        wanted = _Call(
            model=model,
            version=version,
            inputs=inputs,
            outputs=tuple(outputs),
            priority=priority,
            parameters=parameters or {},
            request_id=request_id,
            deadline=deadline,
            timeout_s=timeout_s,
        )
        result = await (self._infer_first(wanted) if merges else self._infer_alone(wanted))
        known = await self._metadata(model, version, deadline, timeout_s) if labels else None
        return result if known is None else replace(result, labels=known.labels)

    async def generate(self, model: str, prompt: Prompt, **options: Unpack[TextOptions]) -> Text:
        """Continue a prompt; arguments and errors are those of :meth:`penstock.Client.generate`."""
        return await self._text(text_call(model, prompt, options))

    async def chat(self, model: str, messages: Sequence[Message], **options: Unpack[TextOptions]) -> Text:
        """Answer a conversation; arguments and errors are those of :meth:`penstock.Client.chat`."""
        return await self._text(text_call(model, messages, options))

    def stream(self, model: str, prompt: Prompt | Sequence[Message], **options: Unpack[TextOptions]) -> AsyncTextStream:
        """Answer in parts; arguments and errors are those of :meth:`penstock.Client.stream`."""
        asked = text_call(model, prompt, options, stream=True)
        reader = TextReader(asked)
        return AsyncTextStream(self._parts(asked, reader), reader)

    async def metadata(self, model: str, *, version: str = "", timeout: float | None = None) -> ModelMetadata:
        """Inputs, outputs and versions of a model.

        Raises:
            NotFound: no such model or version. Unavailable, DeadlineExceeded: as for :meth:`infer`.
        """
        deadline, timeout_s = self._deadline(timeout)
        self._known.pop((model, version), None)
        return await self._metadata(model, version, deadline, timeout_s)

    async def is_live(self, *, timeout: float | None = None) -> bool:
        """Ask whether the server's process is well; False when nobody answers in time."""
        return await self._probe(self._transport().is_live, timeout)

    async def is_ready(self, *, timeout: float | None = None) -> bool:
        """Ask whether the server admits requests; False when nobody answers in time."""
        return await self._probe(self._transport().is_ready, timeout)

    async def model_ready(self, model: str, *, version: str = "", timeout: float | None = None) -> bool:
        """Ask whether a model can answer now; False for an unknown one, and when nobody answers in time."""
        transport = self._transport()
        return await self._probe(lambda left_s: transport.model_ready(model, version, left_s), timeout)

    async def close(self) -> None:
        """Cancel what is under way and close the connections; idempotent."""
        self._is_closed = True
        opened, self._opened = self._opened, None
        for asking in list(self._asking.values()):
            asking.cancel()
        if opened is not None:
            await opened.coalescer.close()
            await opened.transport.close()

    async def _text(self, asked: TextCall) -> Text:
        transport, deadline = aio_text_transport(self._transport(), self._target), self._deadline(asked.timeout_s)[0]
        body = await self._try(
            lambda left_s: transport.post(asked.path, asked.body, left_s, asked.request_id), deadline
        )
        return TextReader(asked).whole(body)

    async def _parts(self, asked: TextCall, reader: TextReader) -> AsyncGenerator[TextPart, None]:
        transport, deadline = aio_text_transport(self._transport(), self._target), self._deadline(asked.timeout_s)[0]
        pieces = await self._try(
            lambda left_s: transport.stream(asked.path, asked.body, left_s, asked.request_id), deadline
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    for part in reader.feed(piece):
                        yield part
            reader.end()
        except PenstockError as error:
            raise located(error, self._target) from error.__cause__

    def _here(self) -> _Opened:
        opened = self._opened
        if opened is not None and opened.loop is asyncio.get_running_loop():
            return opened
        return self._open()

    def _open(self) -> _Opened:
        if self._opened is not None:
            raise Internal(
                "this AsyncClient was first used in another event loop or before a fork, and its connections belong "
                "there; make one in each event loop and each process, for example with 'async with AsyncClient(...)'"
            )
        if self._is_closed:
            raise call.closed(repr(self))
        self._opened = _Opened(
            transport=open_aio_transport(self._target, self._token, self._tls),
            coalescer=Coalescer(self._send, self._limits),
            loop=asyncio.get_running_loop(),
        )
        return self._opened

    def _transport(self) -> AioTransport:
        return self._here().transport

    def _deadline(self, timeout: float | None) -> tuple[float, float]:
        timeout_s = self._timeout_s if timeout is None else call.check_timeout(timeout)
        return asyncio.get_running_loop().time() + timeout_s, timeout_s

    async def _infer_merged(self, queue: MergeQueue, arrays: _Arrays, deadline: float, timeout_s: float) -> InferResult:
        try:
            waiting = queue.submit(arrays, arrays[queue.names[0]].shape[0], deadline, timeout_s)
            return await waiting.future
        except asyncio.CancelledError:
            queue.withdraw(waiting)
            raise
        except InvalidInput:
            self._forget_if_stale(queue.template.model, queue.template.version)
            raise
        except PenstockError as error:
            raise located(error, self._target) from error.__cause__

    async def _infer_first(self, wanted: _Call) -> InferResult:
        """Send the first request of its kind: check it against metadata, open a queue if rows can be merged."""
        arrays, known = await self._checked(wanted)
        if not all(spec.shape[:1] == (-1,) for spec in (*known.inputs, *known.outputs)):
            return await self._infer_alone(replace(wanted, inputs=arrays))
        coalescer = self._here().coalescer
        # bare arrays come back without a name, so they have a key of their own
        given = arrays[known.inputs[0].name] if isinstance(wanted.inputs, np.ndarray) else arrays
        key = kind_of(wanted.model, wanted.version, given, wanted.outputs, wanted.priority)
        queue = coalescer.queue(key) or coalescer.open_queue(key, wanted.request({}), tuple(arrays))
        return await self._infer_merged(queue, arrays, wanted.deadline, wanted.timeout_s)

    async def _infer_alone(self, wanted: _Call) -> InferResult:
        arrays = wanted.inputs
        if call.needs_metadata(arrays):
            known = await self._metadata_for(wanted)
            arrays = call.arrays_of(arrays, known.inputs, known.columns)
        request = wanted.request(cast("_Arrays", arrays))
        try:
            return call.result_of(await self._send(request, wanted.deadline))
        except InvalidInput:
            self._forget_if_stale(wanted.model, wanted.version)
            raise

    async def _checked(self, wanted: _Call) -> tuple[dict[str, Array], ModelMetadata]:
        """Inputs as arrays that fit the model, and the metadata that says so.

        Raises:
            InvalidInput: they do not fit the model as it is now.
        """
        known = await self._metadata_for(wanted)
        try:
            return call.fitting(wanted.inputs, known), known
        except InvalidInput:
            if not self._forget_if_stale(wanted.model, wanted.version):
                raise
        known = await self._metadata(wanted.model, wanted.version, wanted.deadline, wanted.timeout_s)
        return call.fitting(wanted.inputs, known), known

    async def _metadata_for(self, wanted: _Call) -> ModelMetadata:
        known = await self._metadata(wanted.model, wanted.version, wanted.deadline, wanted.timeout_s)
        # a version with another order of columns must not get those of the one before
        if call.is_table(wanted.inputs, known) and self._forget_if_stale(wanted.model, wanted.version):
            known = await self._metadata(wanted.model, wanted.version, wanted.deadline, wanted.timeout_s)
        return known

    async def _metadata(self, model: str, version: str, deadline: float, timeout_s: float) -> ModelMetadata:
        """Known metadata, or one question to the server however many callers ask."""
        known = self._known.get((model, version))
        if known is not None:
            return known[0]
        asking = self._asking.get((model, version))
        if asking is None:
            asking = asyncio.create_task(self._ask(model, version))
            self._asking[model, version] = asking
            asking.add_done_callback(lambda done: self._asked(model, version, done))
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(asking)
        except TimeoutError:
            raise located(call.too_late(timeout_s), self._target) from None
        except PenstockError as error:
            raise copy_of(error) from error.__cause__

    def _asked(self, model: str, version: str, done: asyncio.Task[ModelMetadata]) -> None:
        self._asking.pop((model, version), None)
        if not done.cancelled():
            done.exception()  # every caller may have gone: then nobody else takes it

    async def _ask(self, model: str, version: str) -> ModelMetadata:
        transport, loop = self._transport(), asyncio.get_running_loop()
        metadata = await self._try(
            lambda left_s: transport.metadata(model, version, left_s), loop.time() + self._timeout_s
        )
        if len(self._known) >= call.MAX_KNOWN_MODELS:
            self._known.clear()
        self._known[model, version] = (metadata, loop.time())
        return metadata

    def _forget_if_stale(self, model: str, version: str) -> bool:
        """Perhaps the model is not what it was: ask again, but not once for every wrong request."""
        known = self._known.get((model, version))
        if known is None or asyncio.get_running_loop().time() - known[1] < _STALE_S:
            return False
        del self._known[model, version]
        if self._opened is not None:
            self._opened.coalescer.forget(model, version)
        return True

    async def _send(self, request: InferRequest, deadline: float) -> InferResponse:
        transport = self._transport()
        return await self._try(lambda left_s: transport.infer(call.with_timeout(request, left_s), left_s), deadline)

    async def _probe(self, ask: Callable[[float], Awaitable[bool]], timeout: float | None) -> bool:
        _, timeout_s = self._deadline(timeout)
        try:
            return await ask(timeout_s)
        except (Unavailable, DeadlineExceeded):
            return False

    async def _try(self, send: Callable[[float], Awaitable[_T]], deadline: float) -> _T:
        loop = asyncio.get_running_loop()
        timeout_s = deadline - loop.time()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await send(call.seconds_left(deadline, loop.time(), timeout_s))
            except PenstockError as error:
                wait_s = call.next_try_after_s(
                    error, attempt=attempt, retries=self._retries, left_s=deadline - loop.time(), random=random.random()
                )
                if wait_s is None:
                    raise located(error, self._target) from error.__cause__
            await asyncio.sleep(wait_s)
