"""What travels beside a request is read alike by agent and core, over HTTP and gRPC: one table, every door.

Each HTTP server is asked twice: through its express lane, and through its table of routes, which any header that is not
plain leads to.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from edge_agent.api.routes import http_server
from tests.cloud_core.rig import start_core
from tests.contract.wire import Answer, Ask, send
from tests.edge_agent.datapath import MODEL, SURE, data_path, planes_of
from tests.edge_agent.datapath import rows as edge_rows

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOORS = ("core http", "core http table", "core grpc", "agent unix", "agent unix table", "agent tcp")
OVER_HTTP = [door for door in DOORS if "grpc" not in door]
GRPC = {200: "OK", 400: "INVALID_ARGUMENT", 504: "DEADLINE_EXCEEDED"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
every_door = pytest.mark.parametrize("door", DOORS)


@dataclass(frozen=True)
class House:
    """A core and an agent that listen, each with a model that answers by itself."""

    targets: dict[str, str]

    async def ask(self, door: str, ask: Ask) -> Answer:
        if door.startswith("core"):
            ask = replace(ask, model="mlp", shape=(1, 4), raw=bytes(4 * 4))
        else:
            ask = replace(ask, model=MODEL, shape=(1, 3), raw=np.asarray(edge_rows(SURE), np.float32).tobytes())
        if door.endswith("table"):
            ask = replace(ask, headers={"TE": "trailers", **ask.headers})
        return await asyncio.to_thread(send, self.targets[door.removesuffix(" table")], ask)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))  # a unix socket's path is short
    try:
        async with await start_core(directory) as core, data_path(directory) as path:
            agent = http_server(*planes_of(path.dataplane), dict, lambda model: None, body_s=10.0)
            await agent.listen_unix(directory / "a.sock")
            targets = {
                "core http": f"http://127.0.0.1:{core.http_port}",
                "core grpc": f"grpc://127.0.0.1:{core.grpc_port}",
                "agent unix": f"unix://{directory / 'a.sock'}",
                "agent tcp": f"http://{await agent.listen_tcp('127.0.0.1', 0, setting='--tcp')}",
            }
            yield House(targets)
            await agent.stop(1.0)
    finally:
        shutil.rmtree(directory)


def status_of(answer: Answer) -> int | str:
    """The HTTP status that an answer's status stands for, whichever door it came from."""
    return next((status for status, name in GRPC.items() if name == answer.status), answer.status)


NO_TIMES = (
    "-5", "-0", "-inf", "inf", "nan", "soon", "1e3", "1_000", "+1", "0x10", "1,5", "1" * 13, "1" * 18, "1" * 400,
)  # fmt: skip


@every_door
@pytest.mark.parametrize("text", NO_TIMES, ids=lambda text: f"{text[:8]} {len(text)}")
async def test_a_time_limit_that_is_none_is_told_with_field_value_and_what_was_expected(
    house: House, door: str, text: str
) -> None:
    answer = await house.ask(door, Ask(headers={"x-request-timeout-ms": text, "x-request-id": "r-1"}))
    assert (status_of(answer), answer.code) == (400, "invalid-input")
    assert answer.hints["x-penstock-field"] == "x-request-timeout-ms"
    assert f"{text[:40]!r} is not a number of milliseconds; expected 0 or more" in answer.message
    assert answer.hints["x-request-id"] == "r-1"


@every_door
@pytest.mark.parametrize("micros", [-1, "soon"])
async def test_the_parameter_is_held_to_the_same(house: House, door: str, micros: int | str) -> None:
    answer = await house.ask(door, Ask(parameters={"timeout": micros}))
    assert (status_of(answer), answer.code) == (400, "invalid-input")
    assert answer.hints["x-penstock-field"] == "parameters.timeout"
    assert f"{micros!r} is not a number of microseconds" in answer.message


@every_door
@pytest.mark.parametrize(
    "ask",
    [
        Ask(headers={"x-request-timeout-ms": "0"}),
        Ask(headers={"x-request-timeout-ms": "0"}, parameters={"timeout": 60_000_000}),
        Ask(headers={"x-request-timeout-ms": "60000"}, parameters={"timeout": 1}),
        Ask(headers={"x-request-timeout-ms": "0.000001"}),
    ],
    ids=["over", "header first", "parameter first", "a nanosecond"],
)
async def test_the_earliest_limit_wins_and_expired_work_is_not_executed(house: House, door: str, ask: Ask) -> None:
    answer = await house.ask(door, ask)
    assert (status_of(answer), answer.code) == (504, "deadline-exceeded")
    assert answer.hints["x-penstock-reason"] == "rejected-deadline"
    assert "nothing was executed" in answer.message


@every_door
@pytest.mark.parametrize(
    "ask",
    [
        Ask(headers={"x-request-timeout-ms": "9" * 12}),  # an hour, as far as anybody waits
        Ask(headers={"x-request-timeout-ms": "60000.5"}),
        Ask(parameters={"timeout": 2**63 - 1}),
        Ask(parameters={"timeout": 0}),  # none, as in Triton
        Ask(headers={"traceparent": TRACE}),
        Ask(headers={"traceparent": "00-zz"}),
        Ask(headers={"traceparent": "x" * 2000}),
    ],
    ids=["12 digits", "a fraction", "int64", "no timeout", "a trace", "no trace", "a long one"],
)
async def test_what_can_be_made_sense_of_is_answered(house: House, door: str, ask: Ask) -> None:
    answer = await house.ask(door, ask)
    assert status_of(answer) == 200, answer.message
    assert "x-request-id" not in answer.hints


@every_door
@pytest.mark.parametrize("given", ["abc-1", "x" * 128, "!~"], ids=["short", "long", "signs"])
async def test_a_request_id_is_echoed_with_answers_and_with_refusals(house: House, door: str, given: str) -> None:
    for ask, expected in ((Ask(), 200), (Ask(name="y"), 400)):
        answer = await house.ask(door, replace(ask, headers={"x-request-id": given}))
        assert (status_of(answer), answer.hints["x-request-id"]) == (expected, given)


@every_door
@pytest.mark.parametrize("given", ["two words", "x" * 129, "a\tb", ""], ids=["space", "long", "tab", "empty"])
async def test_a_request_id_that_cannot_be_echoed_is_replaced_by_a_fresh_one_each_time(
    house: House, door: str, given: str
) -> None:
    if door == "core grpc" and "\t" in given:
        pytest.skip("gRPC's own client sends no tab")
    answers = [await house.ask(door, Ask(headers={"x-request-id": given})) for _ in range(2)]
    assert [status_of(answer) for answer in answers] == [200, 200]
    ids = [answer.hints["x-request-id"] for answer in answers]
    assert all(re.fullmatch(r"[0-9a-f]{16}", made) for made in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize("door", OVER_HTTP)
@pytest.mark.parametrize("text", ["-1", "x", "1e2", "", "1" * 13, "9" * 18, "9" * 400], ids=lambda text: text[:20])
async def test_a_header_length_that_is_none_is_told_so(house: House, door: str, text: str) -> None:
    answer = await house.ask(door, Ask(headers={"Inference-Header-Content-Length": text}))
    assert (status_of(answer), answer.code) == (400, "invalid-input")
    assert answer.hints["x-penstock-field"] == "Inference-Header-Content-Length"
    assert f"{text[:40]!r} is not a length; expected a number of bytes" in answer.message


@pytest.mark.parametrize("door", OVER_HTTP)
@pytest.mark.parametrize("encoding", ["x-none-such", "gzip, deflate", "compress"])
async def test_a_body_in_an_unknown_encoding_is_415_and_told_what_would_do(
    house: House, door: str, encoding: str
) -> None:
    answer = await house.ask(door, Ask(headers={"Content-Encoding": encoding}))
    assert (answer.status, answer.code) == (415, "invalid-input")
    assert answer.hints["accept-encoding"] == "gzip, deflate"
    assert f"{encoding!r} is not decoded here" in answer.message


@pytest.mark.parametrize("door", OVER_HTTP)
async def test_a_body_that_says_it_is_as_it_is_is_read(house: House, door: str) -> None:
    answer = await house.ask(door, Ask(headers={"Content-Encoding": "Identity"}))
    assert answer.status == 200, answer.message
