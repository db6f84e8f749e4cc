"""What every transport owes the clients: the same answers and the same errors over each wire, blocking or not.

A new transport becomes one more line of ``TRANSPORTS``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from penstock.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    PenstockError,
    Unauthenticated,
    Unavailable,
)
from penstock.rest.aio_transport import AioRestTransport
from penstock.rest.transport import RestTransport
from penstock.rpc.transport import AioRpcTransport, RpcTransport
from penstock.sdk.transports import AioTransport, Transport
from penstock.wire.addresses import parse_target
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import Array
from tests.penstock.sdk.server import AGENT_PARAMETERS, TOKEN, WEIGHTS, Servers
from tests.tls import Authority, ends_tls, make_authority
from tests.waiting import PATIENCE_S, until

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
TRANSPORTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "blocking grpc": ("grpc", RpcTransport),
    "blocking http": ("http", RestTransport),
    "blocking unix": ("unix", RestTransport),
    "asyncio grpc": ("grpc", AioRpcTransport),
    "asyncio http": ("http", AioRestTransport),
    "asyncio unix": ("unix", AioRestTransport),
    "blocking grpcs": ("grpcs", RpcTransport),
    "blocking https": ("https", RestTransport),
    "asyncio grpcs": ("grpcs", AioRpcTransport),
    "asyncio https": ("https", AioRestTransport),
}
_WITHOUT_TLS = {"grpcs": "grpc", "https": "http"}


class Threaded:
    """A blocking transport behind the asynchronous port: each call in a thread."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return partial(asyncio.to_thread, getattr(self._transport, name))


Open = Callable[..., AioTransport]


@pytest.fixture(params=TRANSPORTS)
def wire(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def target(servers: Servers, wire: str, authority: Authority) -> AsyncIterator[str]:
    """The servers, behind a proxy that ends TLS where the wire has it."""
    scheme = TRANSPORTS[wire][0]
    if scheme not in _WITHOUT_TLS:
        yield servers.target(scheme)
        return
    backend = parse_target(servers.target(_WITHOUT_TLS[scheme])).address
    async with ends_tls(authority.server_context(), backend) as address:
        yield f"{scheme}://{address}"


@pytest.fixture
async def connect(wire: str, authority: Authority) -> AsyncIterator[Open]:
    """``connect(target, token=None)`` opens the transport under test."""
    opened: list[Any] = []

    def made(target: str, token: str | None = None) -> Any:
        transport = TRANSPORTS[wire][1](parse_target(target), token=token, tls=authority.tls)
        opened.append(transport if wire.startswith("asyncio") else Threaded(transport))
        return opened[-1]

    yield made
    for transport in opened:
        await transport.close()


@pytest.fixture
async def transport(connect: Open, target: str) -> AioTransport:
    return connect(target)


def asks(model: str = "digits", *, name: str = "x", rows: Array = ROWS, **fields: Any) -> InferRequest:
    return InferRequest(model=model, inputs={name: rows}, **fields)


async def test_an_answer_carries_arrays_version_id_and_parameters(transport: AioTransport, servers: Servers) -> None:
    answer = await transport.infer(asks("agent", version="v1", id="r-7"), PATIENCE_S)
    np.testing.assert_array_equal(answer.outputs["logits"], ROWS @ WEIGHTS)
    assert (answer.model, answer.version, answer.id) == ("agent", "v1", "r-7")
    assert answer.parameters == AGENT_PARAMETERS
    assert servers.backend.headers[0]["x-request-id"] == "r-7"


async def test_every_byte_of_text_and_every_parameter_arrives(transport: AioTransport, servers: Servers) -> None:
    text = np.array([["grün".encode()], [b"\xff\x00"]], dtype=object)
    parameters = {"priority": 3, "explain": True, "who": "a", "share": 0.5}
    request = InferRequest(
        model="pair", inputs={"a": ROWS[:, :2], "s": text}, outputs=("a", "s"), parameters=parameters
    )
    answer = await transport.infer(request, PATIENCE_S)
    assert answer.outputs["s"].tolist() == text.tolist()
    np.testing.assert_array_equal(answer.outputs["a"], ROWS[:, :2])
    (seen,) = servers.backend.requests
    assert seen.parameters == parameters
    assert seen.outputs == ("a", "s")


async def test_metadata_and_probes(transport: AioTransport) -> None:
    found = await transport.metadata("digits", "v1", PATIENCE_S)
    assert (found.name, found.versions) == ("digits", ("v1",))
    assert [(spec.name, spec.datatype, spec.shape) for spec in found.inputs] == [("x", "FP32", (-1, 4))]
    assert await transport.is_live(PATIENCE_S)
    assert await transport.is_ready(PATIENCE_S)
    assert await transport.model_ready("digits", "", PATIENCE_S)
    assert not await transport.model_ready("none", "", PATIENCE_S)


@pytest.mark.parametrize(
    ("request_of", "kind", "message"),
    [
        (partial(asks, "none"), NotFound, "known: digits"),
        (partial(asks, name="y"), InvalidInput, "y"),
        (partial(asks, rows=ROWS.astype(np.float64)), InvalidInput, "datatype is FP64, expected FP32"),
        (partial(asks, "secret"), Unauthenticated, "who are you"),
        (partial(asks, "down"), Unavailable, "no hint"),
        (partial(asks, "broken"), Internal, r"\S"),
    ],
)
async def test_an_error_of_the_server_is_the_same_error_here(
    transport: AioTransport, request_of: Callable[[], InferRequest], kind: type[PenstockError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        await transport.infer(request_of(), PATIENCE_S)
    assert type(caught.value) is kind
    assert caught.value.retry_after_s is None


async def test_a_hint_when_to_come_back_arrives_and_nothing_is_tried_again(
    transport: AioTransport, servers: Servers
) -> None:
    """Whether to try again is the client's decision, not the transport's."""
    with pytest.raises(Unavailable) as caught:
        await transport.infer(asks("busy"), PATIENCE_S)
    assert caught.value.retry_after_s == 0.0
    assert len(servers.backend.requests) == 1


async def test_the_field_that_is_wrong_is_named(transport: AioTransport) -> None:
    with pytest.raises(InvalidInput) as caught:
        await transport.infer(asks(rows=ROWS[:, :3]), PATIENCE_S)
    assert caught.value.field == "inputs.x"


async def test_a_token_is_a_bearer_token(connect: Open, target: str) -> None:
    transport = connect(target, token=TOKEN)
    assert (await transport.infer(asks("secret"), PATIENCE_S)).model == "secret"


async def test_the_timeout_ends_the_call_and_the_work(transport: AioTransport, servers: Servers) -> None:
    await transport.is_live(PATIENCE_S)
    with pytest.raises(DeadlineExceeded):
        await transport.infer(asks("stuck"), 0.1)
    # on a busy machine the request may not have got as far as the server
    await until("its end", lambda: servers.backend.cancelled == len(servers.backend.requests))


async def test_many_calls_at_once_do_not_mix_their_answers(transport: AioTransport) -> None:
    given = [np.full((1, 4), n, np.float32) for n in range(40)]
    answers = await asyncio.gather(*(transport.infer(asks(rows=x), PATIENCE_S) for x in given))
    for x, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["logits"], x @ WEIGHTS)


async def test_a_port_that_speaks_another_protocol_is_told_with_what_to_use(
    connect: Open, servers: Servers, wire: str
) -> None:
    scheme = TRANSPORTS[wire][0]
    other, advice = {
        "grpc": ("http", "use http:// for it"),
        "http": ("grpc", "use grpc:// for it"),
        "grpcs": ("http", "speaks no TLS"),
        "https": ("http", "speaks no TLS; use http://"),
        "unix": ("", ""),
    }[scheme]
    if not other:
        pytest.skip("a unix socket speaks HTTP only")
    address = parse_target(servers.target(other)).address
    with pytest.raises(Unavailable, match=advice):
        await connect(f"{scheme}://{address}").metadata("digits", "", PATIENCE_S)


@pytest.fixture
def nowhere(wire: str, closed_port: int) -> str:
    scheme = TRANSPORTS[wire][0]
    return "unix:///nowhere/agent.sock" if scheme == "unix" else f"{scheme}://127.0.0.1:{closed_port}"


async def test_a_server_that_is_not_there_is_unavailable_at_once_without_a_hint(connect: Open, nowhere: str) -> None:
    transport = connect(nowhere)
    for call in (transport.infer(asks(), PATIENCE_S), transport.is_live(PATIENCE_S)):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.retry_after_s is None


@pytest.fixture
def mute(wire: str, short_dir: Any) -> Iterator[str]:
    """A server that takes connections, and never says a word."""
    scheme = TRANSPORTS[wire][0]
    family, address = (socket.AF_UNIX, str(short_dir / "s")) if scheme == "unix" else (socket.AF_INET, ("127.0.0.1", 0))
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        name = listener.getsockname()
        yield f"unix://{name}" if scheme == "unix" else f"{scheme}://{name[0]}:{name[1]}"


async def test_a_server_that_says_nothing_costs_no_more_than_the_timeout(connect: Open, mute: str) -> None:
    transport = connect(mute)
    with pytest.raises(DeadlineExceeded):
        await transport.infer(asks(), 0.2)


async def test_closing_twice_is_closing(transport: AioTransport) -> None:
    await transport.infer(asks(), PATIENCE_S)
    await transport.close()
    await transport.close()
