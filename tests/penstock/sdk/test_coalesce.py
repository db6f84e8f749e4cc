from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from penstock.errors import Internal, InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.sdk import coalesce
from penstock.sdk.call import InferResult
from penstock.sdk.coalesce import CoalesceLimits, Coalescer, MergeQueue
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array

Answer = Callable[[InferRequest], Awaitable[InferResponse]]


async def echo(request: InferRequest) -> InferResponse:
    return InferResponse(model=request.model, outputs=request.inputs)


@dataclass
class Harness:
    """A coalescer over an answer that is a plain function."""

    answer: Answer = echo
    limits: CoalesceLimits = field(default_factory=CoalesceLimits)
    sent: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coalescer = Coalescer(self._send, self.limits)
        self.queue = self.open("m")

    def open(self, model: str) -> MergeQueue:
        return self.coalescer.open_queue(model, InferRequest(model=model, inputs={}), ("x",))

    async def _send(self, request: InferRequest, deadline: float) -> InferResponse:
        self.sent.append(request.inputs["x"][:, 0].tolist())
        return await self.answer(request)

    def submit(self, *values: float) -> asyncio.Task[InferResult]:
        array = np.array(values, np.float32).reshape(-1, 1)
        deadline = asyncio.get_running_loop().time() + 30
        return asyncio.create_task(self._infer(array, deadline))

    async def _infer(self, array: Array, deadline: float) -> InferResult:
        waiting = self.queue.submit({"x": array}, len(array), deadline, 30.0)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self.queue.withdraw(waiting)
            raise


async def outcomes(*futures: asyncio.Task[InferResult]) -> list[list[float] | type[BaseException]]:
    results = await asyncio.gather(*futures, return_exceptions=True)
    return [type(r) if isinstance(r, BaseException) else r.outputs["x"][:, 0].tolist() for r in results]


async def test_what_is_submitted_in_one_turn_leaves_as_one_request_in_order() -> None:
    harness = Harness()
    assert await outcomes(harness.submit(1), harness.submit(2, 3), harness.submit(4)) == [[1], [2, 3], [4]]
    assert harness.sent == [[1, 2, 3, 4]]


async def test_a_batch_is_full_at_max_rows_and_a_request_is_never_split() -> None:
    harness = Harness(limits=CoalesceLimits(max_rows=3))
    futures = [harness.submit(1, 1), harness.submit(2, 2), harness.submit(3), harness.submit(*[4] * 5)]
    await outcomes(*futures)
    assert harness.sent == [[1, 1], [2, 2, 3], [4] * 5]


async def test_at_most_max_in_flight_requests_are_under_way() -> None:
    gate = asyncio.Event()

    async def wait(request: InferRequest) -> InferResponse:
        await gate.wait()
        return await echo(request)

    harness = Harness(answer=wait, limits=CoalesceLimits(max_rows=1, max_in_flight=2))
    futures = [harness.submit(n) for n in range(5)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert harness.sent == [[0], [1]]
    gate.set()
    assert await outcomes(*futures) == [[0], [1], [2], [3], [4]]


async def test_rows_that_wait_are_bounded() -> None:
    harness = Harness(limits=CoalesceLimits(max_queued_rows=2))
    futures = [harness.submit(1), harness.submit(2)]
    with pytest.raises(QueueFull, match="max_queued_rows"):
        await harness.submit(3)
    await outcomes(*futures)
    assert await outcomes(harness.submit(4)) == [[4]]


async def test_an_error_reaches_every_member_as_an_instance_of_its_own() -> None:
    async def down(request: InferRequest) -> InferResponse:
        raise Unavailable("down", retry_after_s=1.0)

    harness = Harness(answer=down)
    first, second = await asyncio.gather(harness.submit(1), harness.submit(2), return_exceptions=True)
    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)
    assert first is not second
    assert first.retry_after_s == second.retry_after_s == 1.0


async def test_a_refusal_reaches_only_those_it_belongs_to() -> None:
    async def picky(request: InferRequest) -> InferResponse:
        if (request.inputs["x"] < 0).any():
            raise InvalidInput("negative")
        return await echo(request)

    harness = Harness(answer=picky)
    values = [1, -1, 2, 3, -4, 5, 6, 7]
    expected = [InvalidInput if value < 0 else [value] for value in values]
    assert await outcomes(*(harness.submit(value) for value in values)) == expected
    assert harness.queue.max_rows == harness.limits.max_rows


async def test_a_queue_learns_how_many_rows_a_server_takes() -> None:
    async def narrow(request: InferRequest) -> InferResponse:
        if request.inputs["x"].shape[0] > 3:
            raise InvalidInput("too many rows")
        return await echo(request)

    harness = Harness(answer=narrow)
    await outcomes(*(harness.submit(value) for value in range(8)))
    assert harness.queue.max_rows == 2
    harness.sent.clear()
    await outcomes(*(harness.submit(value) for value in range(8)))
    assert {len(rows) for rows in harness.sent} == {2}


async def test_an_answer_with_another_number_of_rows_fails_its_callers() -> None:
    async def short(request: InferRequest) -> InferResponse:
        return InferResponse(model="m", outputs={"x": request.inputs["x"][:1]})

    assert await outcomes(*map(Harness(answer=short).submit, (1, 2))) == [Internal, Internal]


async def test_a_defect_reaches_the_callers_instead_of_leaving_them_waiting() -> None:
    async def broken(request: InferRequest) -> InferResponse:
        raise KeyError("oops")

    harness = Harness(answer=broken)
    with pytest.raises(Internal, match="KeyError"):
        await harness.submit(1)
    await asyncio.sleep(0)
    assert harness.queue.is_idle


async def test_kinds_are_bounded_and_forgetting_one_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesce, "MAX_KINDS", 3)
    harness = Harness()
    future = harness.submit(1)
    for number in range(5):
        harness.open(f"m{number}")
    assert harness.coalescer.queue("m") is None
    assert await outcomes(future) == [[1]]


@pytest.mark.parametrize("turns", range(4))
async def test_cancelling_in_any_turn_of_the_loop_leaves_the_queue_usable(turns: int) -> None:
    harness = Harness(limits=CoalesceLimits(max_in_flight=1))
    cancelled = harness.submit(1)
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled.cancel()
    assert await outcomes(harness.submit(2)) == [[2]]
    await outcomes(cancelled)
    assert harness.queue.is_idle


async def test_closing_leaves_nobody_waiting() -> None:
    async def never(request: InferRequest) -> InferResponse:
        await asyncio.Event().wait()
        raise AssertionError

    harness = Harness(answer=never, limits=CoalesceLimits(max_rows=1, max_in_flight=1))
    futures = [harness.submit(n) for n in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    await harness.coalescer.close()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(result, PenstockError) and result.code == "cancelled" for result in results)
    assert repr(harness.coalescer) == "<Coalescer kinds=1 queued_rows=0>"
