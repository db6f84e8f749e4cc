from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from penstock import Client
from penstock.errors import (
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    PenstockError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from tests.penstock.sdk.server import AGENT_PARAMETERS, TOKEN, WEIGHTS, Servers

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_a_bare_array_goes_to_the_only_input(target: str, threaded: Servers) -> None:
    with Client(target) as client:
        for _ in range(3):
            result = client.infer("digits", ROWS)
            np.testing.assert_array_equal(result.outputs["logits"], ROWS @ WEIGHTS)
    assert (result.model, result.version, result.rows, result.served_by) == ("digits", "v1", 2, "")
    assert threaded.backend.metadata_calls == 1


def test_a_dict_of_arrays_needs_no_metadata(target: str, threaded: Servers) -> None:
    text = np.array([["grün".encode()], [b"\xff"]], dtype=object)
    with Client(target) as client:
        result = client.infer("pair", {"a": ROWS[:, :2], "s": text})
    np.testing.assert_array_equal(result.outputs["a"], ROWS[:, :2])
    assert result.outputs["s"].tolist() == text.tolist()
    assert threaded.backend.metadata_calls == 0


def test_lists_get_the_datatype_that_the_model_asks_for(target: str) -> None:
    with Client(target) as client:
        assert client.infer("digits", [[1, 2, 3, 4]]).outputs["logits"].dtype == np.float32
        assert client.infer("pair", {"a": [[1, 2]], "s": [["text"]]}).outputs["s"].tolist() == [[b"text"]]
        with pytest.raises(InvalidInput, match=r"inputs\.x: does not convert"):
            client.infer("digits", [[1, 2], [3]])
        with pytest.raises(InvalidInput, match="the model has 2 \\(a, s\\); give a dict"):
            client.infer("pair", ROWS)


def test_what_an_agent_says_of_itself(target: str) -> None:
    with Client(target) as client:
        result = client.infer("agent", ROWS)
    assert (result.served_by, result.confidence, result.threshold) == ("edge", 0.97, 0.9)
    assert (result.certificate, result.reason) == ("sha256:abc", "confident")
    assert result.parameters == AGENT_PARAMETERS


def test_options_travel(target: str, threaded: Servers) -> None:
    with Client(target) as client:
        result = client.infer(
            "digits",
            {"x": ROWS},
            version="v1",
            outputs=("logits",),
            timeout=5.0,
            priority=1,
            parameters={"explain": True},
            request_id="r-7",
        )
    (request,) = threaded.backend.requests
    assert (request.model, request.version, request.id, request.outputs) == ("digits", "v1", "r-7", ("logits",))
    timeout_us = request.parameters["timeout"]
    assert isinstance(timeout_us, int)
    assert 0 < timeout_us <= 5_000_000  # what remains, not what was asked for
    assert {**request.parameters, "timeout": 0} == {"explain": True, "priority": 1, "timeout": 0}
    assert result.id == "r-7"
    assert threaded.backend.headers[0]["x-request-id"] == "r-7"


def test_metadata_and_probes(target: str) -> None:
    with Client(target) as client:
        metadata = client.metadata("digits")
        assert (metadata.name, metadata.inputs[0].shape) == ("digits", (-1, 4))
        assert client.is_live()
        assert client.is_ready()
        assert client.model_ready("digits")
        assert not client.model_ready("none")


def test_errors_are_typed(target: str) -> None:
    with Client(target) as client:
        with pytest.raises(NotFound, match="known: digits"):
            client.infer("none", ROWS)
        with pytest.raises(NotFound, match="known: digits"):
            client.infer("none", {"x": ROWS})
        with pytest.raises(InvalidInput, match="datatype is FP16, expected FP32") as wrong:
            client.infer("digits", ROWS.astype(np.float16))
        assert wrong.value.field == "inputs.x"
        with pytest.raises(Internal):
            client.infer("broken", ROWS)


def test_a_token_is_sent_as_bearer(target: str) -> None:
    with Client(target) as nobody, pytest.raises(Unauthenticated):
        nobody.infer("secret", ROWS)
    with Client(target, token=TOKEN) as client:
        assert client.infer("secret", ROWS).rows == 2


def test_a_refusal_with_a_hint_is_tried_again(target: str, threaded: Servers) -> None:
    threaded.backend.refusals = 2
    with Client(target, retries=2) as client:
        client.infer("busy", {"x": ROWS})
    assert len(threaded.backend.requests) == 3
    timeouts = [int(request.parameters["timeout"]) for request in threaded.backend.requests]
    assert timeouts == sorted(timeouts, reverse=True)  # each try is told what remains
    assert timeouts[0] > timeouts[-1]


def test_tries_are_counted(target: str, threaded: Servers) -> None:
    threaded.backend.refusals = 99
    with Client(target, retries=1) as client, pytest.raises(Unavailable, match="busy: loading"):
        client.infer("busy", {"x": ROWS})
    assert len(threaded.backend.requests) == 2


def test_a_refusal_without_a_hint_is_final(target: str, threaded: Servers) -> None:
    with Client(target) as client, pytest.raises(Unavailable, match="no hint"):
        client.infer("down", {"x": ROWS})
    assert len(threaded.backend.requests) == 1


def test_the_deadline_ends_a_call(target: str) -> None:
    with Client(target) as client, pytest.raises(DeadlineExceeded) as late:
        client.infer("stuck", {"x": ROWS}, timeout=0.05)
    assert target in late.value.message


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_timeout_that_is_none_is_refused(target: str, timeout: float) -> None:
    with Client(target) as client, pytest.raises(InvalidInput, match="not a positive number of seconds"):
        client.infer("digits", ROWS, timeout=timeout)


@pytest.mark.parametrize("timeout", [1e10, 3.6e12, 1e300])
def test_a_timeout_of_centuries_is_one_of_an_hour(target: str, timeout: float) -> None:
    with Client(target, timeout=timeout) as client:
        assert client.is_live()
        client.infer("digits", ROWS, timeout=timeout)


def test_a_timeout_among_the_parameters_and_a_negative_priority_are_refused(target: str) -> None:
    with Client(target) as client:
        with pytest.raises(InvalidInput, match="pass timeout="):
            client.infer("digits", {"x": ROWS}, parameters={"timeout": 5})
        with pytest.raises(InvalidInput, match="priority"):
            client.infer("digits", {"x": ROWS}, priority=-1)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_target_without_a_server_is_unavailable_and_named(scheme: str, closed_port: int) -> None:
    target = f"{scheme}://127.0.0.1:{closed_port}"
    with Client(target) as client:
        with pytest.raises(Unavailable, match=target):
            client.infer("digits", {"x": ROWS})
        assert not client.is_live()
        assert not client.is_ready()
        assert not client.model_ready("digits")


def test_a_socket_that_does_not_exist_is_unavailable_and_named() -> None:
    with (
        Client("unix:///nowhere/agent.sock") as client,
        pytest.raises(Unavailable, match=r"unix:///nowhere/agent\.sock: .*No such file"),
    ):
        client.infer("digits", {"x": ROWS})


def test_one_client_serves_many_threads(target: str) -> None:
    with Client(target) as client, ThreadPoolExecutor(16) as pool:
        inputs = [np.full((1, 4), n, np.float32) for n in range(200)]
        results = list(pool.map(lambda x: client.infer("digits", x).outputs["logits"], inputs))
    for x, logits in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(logits, x @ WEIGHTS)


def test_connections_are_reused_and_closed(threaded: Servers) -> None:
    client = Client(threaded.unix)
    pool = client._transport._idle  # type: ignore[attr-defined]  # there is no public view of it, nor need for one
    for _ in range(5):
        client.infer("digits", {"x": ROWS})
        assert len(pool) == 1
    client.close()
    assert not pool
    client.close()
    with pytest.raises(Conflict, match="closed"):
        client.infer("digits", {"x": ROWS})


@contextmanager
def scripted(*answers: bytes) -> Iterator[str]:
    """A server that gives each connection one scripted answer after a whole request, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)  # a client that does not come again must not keep the thread

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    received = b""
                    while b"\r\n\r\n" not in received:
                        received += connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


_LIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_a_closed_client_says_so_whatever_it_is_asked(target: str) -> None:
    client = Client(target)
    client.close()
    client.close()
    for call in (
        lambda: client.infer("digits", ROWS),
        lambda: client.metadata("digits"),
        lambda: client.is_ready(),
        lambda: client.model_ready("digits"),
        lambda: client.generate("digits", "x"),
        lambda: next(client.stream("digits", "x")),
    ):
        with pytest.raises(Conflict, match=r"Client\(.*\) is closed, so it takes no further calls"):
            call()


def test_a_kept_alive_connection_that_the_server_closed_is_replaced_without_an_error() -> None:
    with scripted(_LIVE, _LIVE) as target, Client(target) as client:
        assert client.is_live()
        assert client.is_live()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", Unavailable),
        (b"garbage\r\n\r\n", Unavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", Unavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", TooLarge),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Internal),
        (b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: x\r\nContent-Length: 2\r\n\r\n{}", Internal),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", Internal),
    ],
)
def test_a_broken_answer_is_a_typed_error(answer: bytes, kind: type[PenstockError]) -> None:
    with scripted(answer) as target, Client(target) as client, pytest.raises(kind):
        client.infer("digits", {"x": ROWS})


def test_a_model_name_cannot_reach_another_path(threaded: Servers) -> None:
    with Client(threaded.http) as client, pytest.raises(NotFound):
        client.infer("../health/live?x=", {"x": ROWS})
    assert threaded.backend.requests[0].model == "../health/live?x="
