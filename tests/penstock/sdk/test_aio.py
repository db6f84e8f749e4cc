from __future__ import annotations

import asyncio

import numpy as np
import pytest

from penstock import AsyncClient
from penstock.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from penstock.wire.inference import ModelMetadata
from penstock.wire.tensors import TensorSpec
from tests.penstock.sdk.server import AGENT_PARAMETERS, TOKEN, WEIGHTS, Servers
from tests.waiting import until

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def row(value: float) -> np.ndarray:
    return np.full((1, 4), value, np.float32)


async def test_infer_over_every_transport(servers: Servers, scheme: str) -> None:
    async with AsyncClient(servers.target(scheme)) as client:
        result = await client.infer("digits", ROWS)
        np.testing.assert_array_equal(result.outputs["logits"], ROWS @ WEIGHTS)
        text = np.array([[b"a"], [b"\xff"]], dtype=object)
        pair = await client.infer("pair", {"a": ROWS[:, :2], "s": text})
        assert pair.outputs["s"].tolist() == text.tolist()
        assert (await client.infer("digits", [[1, 2, 3, 4]])).rows == 1
        agent = await client.infer("agent", ROWS)
        assert agent.parameters == AGENT_PARAMETERS
        assert (agent.served_by, agent.reason) == ("edge", "confident")
        fixed = await client.infer("fixed", np.eye(2))
        np.testing.assert_array_equal(fixed.outputs["m"], np.eye(2))


async def test_metadata_and_probes(servers: Servers, scheme: str) -> None:
    async with AsyncClient(servers.target(scheme)) as client:
        assert (await client.metadata("digits")).outputs[0].name == "logits"
        assert await client.is_live()
        assert await client.is_ready()
        assert await client.model_ready("digits")
        assert not await client.model_ready("none")


async def test_errors_are_typed(servers: Servers, scheme: str) -> None:
    async with AsyncClient(servers.target(scheme)) as client:
        with pytest.raises(NotFound, match="known: digits"):
            await client.infer("none", ROWS)
        with pytest.raises(InvalidInput, match="datatype is FP16, expected FP32"):
            await client.infer("digits", ROWS.astype(np.float16))
        with pytest.raises(InvalidInput, match="no rows"):
            await client.infer("digits", ROWS[:0])
        with pytest.raises(InvalidInput, match="shape is \\[\\]"):
            await client.infer("digits", np.float32(1) * np.ones((), np.float32))
        with pytest.raises(Internal):
            await client.infer("broken", ROWS)
        with pytest.raises(Unauthenticated):
            await client.infer("secret", ROWS)
        with pytest.raises(InvalidInput, match="priority"):
            await client.infer("digits", ROWS, priority=-1)
    async with AsyncClient(servers.target(scheme), token=TOKEN) as client:
        assert (await client.infer("secret", ROWS)).rows == 2


async def test_retries_only_with_a_hint(servers: Servers, scheme: str) -> None:
    async with AsyncClient(servers.target(scheme)) as client:
        await client.infer("busy", ROWS)
        assert len(servers.backend.requests) == 2
        with pytest.raises(Unavailable, match="no hint"):
            await client.infer("down", ROWS)
        assert len(servers.backend.requests) == 3


async def test_the_deadline_ends_a_call_here_and_there(servers: Servers, scheme: str) -> None:
    async with AsyncClient(servers.target(scheme)) as client:
        await client.metadata("stuck")
        with pytest.raises(DeadlineExceeded) as late:
            await client.infer("stuck", ROWS, timeout=0.05)
    assert servers.target(scheme) in late.value.message
    # on a busy machine the request may not have got as far as the server
    await until("the server sees it", lambda: servers.backend.cancelled == len(servers.backend.requests))


async def test_cancelling_a_call_reaches_the_server(servers: Servers, scheme: str) -> None:
    async with AsyncClient(servers.target(scheme)) as client:
        task = asyncio.create_task(client.infer("stuck", ROWS))
        await until("the server sees it", lambda: servers.backend.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until("the server sees it", lambda: servers.backend.cancelled)


@pytest.mark.parametrize("prefix", ["grpc://127.0.0.1:", "http://127.0.0.1:", "unix:///nowhere/"])
async def test_a_target_without_a_server_is_unavailable_and_named(prefix: str, closed_port: int) -> None:
    target = f"{prefix}{closed_port}"
    async with AsyncClient(target) as client:
        with pytest.raises(Unavailable, match=target):
            await client.infer("digits", {"x": ROWS})
        assert not await client.is_live()
        assert not await client.is_ready()


async def test_a_closed_client_refuses(servers: Servers, scheme: str) -> None:
    client = AsyncClient(servers.target(scheme))
    await client.infer("digits", ROWS)
    await client.close()
    await client.close()
    with pytest.raises(Conflict, match=r"AsyncClient\(.*\) is closed, so it takes no further calls"):
        await client.infer("digits", ROWS)


async def test_concurrent_rows_travel_together(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        await client.infer("digits", row(0))
        results = await asyncio.gather(*(client.infer("digits", row(n)) for n in range(100)))
    for n, result in enumerate(results):
        np.testing.assert_array_equal(result.outputs["logits"], row(n) @ WEIGHTS)
    assert servers.backend.rows() == [1, 100]
    assert servers.backend.metadata_calls == 1


async def test_the_first_hundred_callers_ask_for_metadata_once(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        await asyncio.gather(*(client.infer("digits", row(n)) for n in range(100)))
    assert servers.backend.metadata_calls == 1
    assert len(servers.backend.requests) <= 2


async def test_batches_grow_while_requests_are_under_way(servers: Servers) -> None:
    servers.backend.gate = asyncio.Event()
    async with AsyncClient(servers.grpc, max_in_flight=1) as client:
        tasks = [asyncio.create_task(client.infer("digits", row(0)))]
        await until("the server sees it", lambda: servers.backend.requests)
        for n in range(1, 30):
            tasks.append(asyncio.create_task(client.infer("digits", row(n))))
            await asyncio.sleep(0)
        assert servers.backend.rows() == [1]
        servers.backend.gate.set()
        await asyncio.gather(*tasks)
    assert servers.backend.rows() == [1, 29]


async def test_kinds_that_differ_are_not_merged(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        await asyncio.gather(
            client.infer("digits", row(1)),
            client.infer("digits", row(2), version="v1"),
            client.infer("digits", row(3), outputs=("logits",)),
            client.infer("digits", row(4), priority=1),
            client.infer("digits", row(5), request_id="mine"),
            client.infer("digits", row(6), parameters={"explain": True}),
            client.infer("agent", row(7)),
        )
    assert servers.backend.rows() == [1] * 7


async def test_nothing_is_merged_when_told_so_or_when_rows_are_not_a_batch(servers: Servers) -> None:
    async with AsyncClient(servers.grpc, coalesce=False) as client:
        await asyncio.gather(*(client.infer("digits", row(n)) for n in range(5)))
    assert servers.backend.rows() == [1] * 5
    servers.backend.requests.clear()
    async with AsyncClient(servers.grpc) as client:
        await asyncio.gather(*(client.infer("fixed", np.eye(2)) for _ in range(5)))
    assert servers.backend.rows() == [2] * 5


async def test_rows_of_requests_are_kept_apart(servers: Servers) -> None:
    async with AsyncClient(servers.grpc, max_rows=8) as client:
        sizes = [1, 3, 8, 2, 20, 5, 1]
        inputs = [np.random.default_rng(n).random((rows, 4), dtype=np.float32) for n, rows in enumerate(sizes)]
        results = await asyncio.gather(*(client.infer("digits", x) for x in inputs))
    for x, result in zip(inputs, results, strict=True):
        np.testing.assert_allclose(result.outputs["logits"], x @ WEIGHTS, rtol=1e-6)
        assert result.rows == len(x)
    assert max(servers.backend.rows()) == 20  # larger than max_rows: alone, never split
    assert sorted(servers.backend.rows())[-2] <= 8


async def test_a_bad_request_fails_alone(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        values = [n if n != 37 else -1 for n in range(64)]
        results = await asyncio.gather(*(client.infer("picky", row(v)) for v in values), return_exceptions=True)
    for value, result in zip(values, results, strict=True):
        if value < 0:
            assert isinstance(result, InvalidInput)
        else:
            assert not isinstance(result, BaseException)
            np.testing.assert_array_equal(result.outputs["logits"], row(value) @ WEIGHTS)


async def test_a_wrong_shape_is_refused_before_it_meets_others(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        good, bad = await asyncio.gather(
            client.infer("digits", row(1)), client.infer("digits", np.ones((1, 5), np.float32)), return_exceptions=True
        )
    assert not isinstance(good, BaseException)
    assert isinstance(bad, InvalidInput)
    assert bad.field == "inputs.x"
    assert servers.backend.rows() == [1]


async def test_a_server_that_takes_fewer_rows_is_sent_fewer(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        for _ in range(2):
            results = await asyncio.gather(*(client.infer("narrow", row(n)) for n in range(8)))
            assert [r.outputs["logits"][0, 0] for r in results] == [(row(n) @ WEIGHTS)[0, 0] for n in range(8)]
        tried = len(servers.backend.requests)
        servers.backend.requests.clear()
        await asyncio.gather(*(client.infer("narrow", row(n)) for n in range(8)))
    assert tried > 4
    assert servers.backend.rows() == [2, 2, 2, 2]


async def test_cancelling_one_does_not_disturb_the_others(servers: Servers) -> None:
    servers.backend.gate = asyncio.Event()
    async with AsyncClient(servers.grpc) as client:
        tasks = [asyncio.create_task(client.infer("digits", row(n))) for n in range(10)]
        await until("the server sees it", lambda: servers.backend.requests)
        tasks[3].cancel()
        await asyncio.sleep(0)
        servers.backend.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    for n, result in enumerate(results):
        if n != 3:
            assert not isinstance(result, BaseException)
            np.testing.assert_array_equal(result.outputs["logits"], row(n) @ WEIGHTS)


async def test_cancelling_all_cancels_the_merged_request(servers: Servers) -> None:
    async with AsyncClient(servers.grpc) as client:
        tasks = [asyncio.create_task(client.infer("stuck", row(n))) for n in range(10)]
        await until("the server sees it", lambda: servers.backend.requests)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until("the server sees it", lambda: servers.backend.cancelled)


async def test_each_caller_keeps_its_own_deadline(servers: Servers) -> None:
    servers.backend.gate = asyncio.Event()
    async with AsyncClient(servers.grpc) as client:
        await client.metadata("digits")
        short = asyncio.create_task(client.infer("digits", row(1), timeout=0.05))
        middle = asyncio.create_task(client.infer("digits", row(2), timeout=0.08))
        long = asyncio.create_task(client.infer("digits", row(3), timeout=20))
        for task in (short, middle):
            with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.0[58] s"):
                await task
        assert not long.done()
        servers.backend.gate.set()
        np.testing.assert_array_equal((await long).outputs["logits"], row(3) @ WEIGHTS)
    timeout_us = servers.backend.requests[0].parameters["timeout"]
    assert isinstance(timeout_us, int)
    assert timeout_us > 10_000_000  # the latest of the members


async def test_rows_that_expire_while_queued_are_never_sent(servers: Servers) -> None:
    servers.backend.gate = asyncio.Event()
    async with AsyncClient(servers.grpc, max_in_flight=1) as client:
        first = asyncio.create_task(client.infer("digits", row(0)))
        await until("the server sees it", lambda: servers.backend.requests)
        with pytest.raises(DeadlineExceeded):
            await client.infer("digits", row(1), timeout=0.03)
        servers.backend.gate.set()
        await first
        await client.infer("digits", row(2))
    assert servers.backend.rows() == [1, 1]
    assert servers.backend.requests[1].inputs["x"][0, 0] == 2


async def test_closing_answers_those_who_wait(servers: Servers) -> None:
    client = AsyncClient(servers.grpc, max_in_flight=1)
    tasks = [asyncio.create_task(client.infer("stuck", row(n))) for n in range(3)]
    await until("the server sees it", lambda: servers.backend.requests)
    tasks.append(asyncio.create_task(client.infer("stuck", row(3))))
    await asyncio.sleep(0)
    await client.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Cancelled) for result in results)


async def test_a_model_that_changed_its_shape_is_asked_about_again(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.sdk.aio._STALE_S", 0.0)
    async with AsyncClient(servers.grpc) as client:
        await client.infer("pair", {"a": ROWS[:, :2], "s": np.array([[b"a"], [b"b"]], dtype=object)})
        servers.backend.models["pair"] = ModelMetadata(
            name="pair",
            versions=("v2",),
            platform="numpy",
            inputs=(TensorSpec(name="a", datatype="FP64", shape=(-1, 3)),),
            outputs=(TensorSpec(name="a", datatype="FP64", shape=(-1, 3)),),
        )
        result = await client.infer("pair", np.ones((1, 3)))
        assert result.outputs["a"].shape == (1, 3)
        with pytest.raises(InvalidInput):
            await client.infer("pair", {"a": ROWS[:, :2], "s": np.array([[b"a"], [b"b"]], dtype=object)})
