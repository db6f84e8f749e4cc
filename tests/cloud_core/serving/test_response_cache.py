"""Equal requests: who is asked, who shares, and what each caller gets. A virtual clock; nothing real runs."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from cloud_core.serving.counters import CacheMeasures
from cloud_core.serving.response_cache import HIT, SHARED, ResponseCache, request_key
from penstock.errors import DeadlineExceeded, Internal, PenstockError
from penstock.hosting.replica import Chunk
from penstock.hosting.rows import Tensors
from penstock.wire.context import RequestContext
from tests.penstock.hosting.rig import outcome, rows, run_virtual


class Model:
    """Doubles its rows, each run in one second; fails, or draws its answer, when it is told to."""

    def __init__(self) -> None:
        self.runs, self.took_s, self.error, self.is_drawn = 0, 1.0, None, False
        self.error: PenstockError | None

    async def __call__(self, chunk: Chunk, context: RequestContext) -> Tensors:
        self.runs += 1
        loop = asyncio.get_running_loop()
        late_s = context.deadline - loop.time()
        await asyncio.sleep(min(self.took_s, late_s))
        if late_s < self.took_s:
            raise DeadlineExceeded("late")
        if self.error is not None:
            raise self.error
        return {"y": chunk.inputs["x"] * (2 + self.runs * self.is_drawn)}


class Rig:
    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.model, self.measures = Model(), CacheMeasures()
        settings = {"max_bytes": 100_000, "ttl_s": 0.0, **settings}
        room = settings.pop("max_bytes")
        self.cache = ResponseCache("mlp", room, measures=self.measures, now=self.loop.time, **settings)

    async def prove(self) -> Rig:
        """A first request is asked twice; see the test of it."""
        await self.ask(rows(999))
        self.model.runs = self.measures.misses = 0
        self.cache.clear()
        return self

    async def ask(
        self, x: Any, *, timeout_s: float = 100.0, tenant: str = "", priority: int = 0, outputs: tuple[str, ...] = ()
    ) -> tuple[list[float], str]:
        context = RequestContext(
            arrived_at=self.loop.time(), deadline=self.loop.time() + timeout_s, tenant=tenant, priority=priority
        )
        chunk = Chunk(inputs={"x": x}, rows=len(x), outputs=outputs or None)
        answer, source = await self.cache.infer(chunk, context, self.model)
        return answer["y"][:, 0].tolist(), source

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.measures.hits, self.measures.misses, self.measures.shared


def test_an_equal_request_is_given_the_answer_and_runs_nothing() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        assert await rig.ask(rows(1, 2)) == ([2, 4], "")
        assert await rig.ask(rows(1, 2)) == ([2, 4], HIT)
        assert await rig.ask(rows(1, 3)) == ([2, 6], "")
        assert (rig.model.runs, rig.counts) == (2, (1, 2, 0))

    run_virtual(test)


def test_equal_requests_at_the_same_time_share_one_run() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        answers = await asyncio.gather(*(rig.ask(rows(1)) for _ in range(5)), rig.ask(rows(2)))
        assert answers == [([2], ""), *[([2], SHARED)] * 4, ([4], "")]
        assert (rig.model.runs, rig.counts) == (2, (0, 2, 4))

    run_virtual(test)


def test_each_waits_until_its_own_deadline() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        begun = rig.loop.time()
        first = asyncio.ensure_future(rig.ask(rows(1)))
        await asyncio.sleep(0.1)
        impatient = asyncio.ensure_future(rig.ask(rows(1), timeout_s=0.2))
        with pytest.raises(DeadlineExceeded):
            await impatient
        assert rig.loop.time() - begun == pytest.approx(0.3)
        assert await first == ([2], "")
        with pytest.raises(DeadlineExceeded):
            await rig.ask(rows(1), timeout_s=0.0)
        assert rig.model.runs == 1

    run_virtual(test)


def test_a_first_caller_that_is_out_of_time_fails_nobody_else() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        first = asyncio.ensure_future(rig.ask(rows(1), timeout_s=0.5))
        await asyncio.sleep(0.1)
        others = [asyncio.ensure_future(rig.ask(rows(1))) for _ in range(3)]
        assert isinstance(await outcome(first), DeadlineExceeded)
        assert await asyncio.gather(*others) == [([2], ""), ([2], SHARED), ([2], SHARED)]
        assert rig.model.runs == 2

    run_virtual(test)


@pytest.mark.parametrize("leaves", [0, 1])
def test_a_caller_that_leaves_takes_the_answer_from_nobody(leaves: int) -> None:
    async def test() -> None:
        rig = await Rig().prove()
        x = [rows(1) for _ in range(3)]
        callers = [asyncio.ensure_future(rig.ask(one)) for one in x]
        await asyncio.sleep(0.5)
        callers[leaves].cancel()
        x[leaves][:] = 77  # its memory is used again
        answers = [await outcome(caller) for caller in callers]
        assert isinstance(answers.pop(leaves), asyncio.CancelledError)
        assert answers == [([2], ""), ([2], SHARED)]
        assert await rig.ask(rows(1)) == ([2], HIT)

    run_virtual(test)


def test_an_error_is_shared_and_not_kept() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        rig.model.error = Internal("broken")
        errors = await asyncio.gather(*(rig.ask(rows(1)) for _ in range(2)), return_exceptions=True)
        assert [type(error) for error in errors] == [Internal, Internal]
        assert errors[0] is not errors[1]
        rig.model.error = None
        assert await rig.ask(rows(1)) == ([2], "")
        assert rig.model.runs == 2

    run_virtual(test)


def test_no_tenant_is_given_what_another_one_asked_for() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        await rig.ask(rows(1), tenant="shop")
        assert (await rig.ask(rows(1), tenant="other"))[1] == ""
        assert (await rig.ask(rows(1), tenant="shop"))[1] == HIT
        both = [rig.ask(rows(2), tenant=tenant) for tenant in ("shop", "other")]
        assert [source for _, source in await asyncio.gather(*both)] == ["", ""]

    run_virtual(test)


def test_who_is_in_a_hurry_waits_for_nobody_who_is_not() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        answers = await asyncio.gather(rig.ask(rows(1)), rig.ask(rows(1), priority=1))
        assert [source for _, source in answers] == ["", ""]
        assert (await rig.ask(rows(1), priority=2))[1] == HIT

    run_virtual(test)


def test_an_answer_grows_old_and_room_is_bounded() -> None:
    async def test() -> None:
        rig = await Rig(ttl_s=10.0, max_bytes=10_000).prove()
        await rig.ask(rows(1))
        await asyncio.sleep(10.0)
        assert (await rig.ask(rows(1)))[1] == ""
        for value in range(50):
            await rig.ask(rows(value))
        assert 0 < rig.cache.size_bytes <= 10_000
        assert rig.measures.ended > 30

    run_virtual(test)


def test_what_callers_are_given_they_cannot_change_for_others() -> None:
    async def test() -> None:
        rig = await Rig().prove()
        context = RequestContext(arrived_at=0.0)
        for _ in range(2):
            answer, _ = await rig.cache.infer(Chunk(inputs={"x": rows(1)}, rows=1), context, rig.model)
            with pytest.raises(ValueError, match="read-only"):
                answer["y"][:] = 7

    run_virtual(test)


def test_a_model_that_draws_its_answers_is_found_out_by_its_first_request(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        rig = Rig()
        rig.model.is_drawn = True
        first, second, third = await asyncio.gather(*(rig.ask(rows(1)) for _ in range(3)))
        assert {source for _, source in (first, second, third)} == {""}
        assert len({answer[0] for answer, _ in (first, second, third)}) == 3
        assert await rig.ask(rows(1)) != first
        assert rig.cache.size_bytes == 0
        assert "responses are not cached" in caplog.text

    run_virtual(test)


def test_a_first_request_without_time_to_be_asked_twice_is_answered_and_proves_nothing() -> None:
    async def test() -> None:
        rig = Rig()
        assert await rig.ask(rows(1), timeout_s=1.5) == ([2], "")
        assert "not proven" in repr(rig.cache)
        assert await rig.ask(rows(1)) == ([2], "")
        assert await rig.ask(rows(1)) == ([2], HIT)

    run_virtual(test)


def test_large_inputs_are_looked_at_off_the_loop_and_found_again() -> None:
    async def test() -> None:
        rig = Rig(max_bytes=10_000_000)
        rig.model.took_s = 0.0
        large = np.ones((1, 100_000), np.float32)
        assert [(await rig.ask(large))[1], (await rig.ask(large.copy()))[1]] == ["", HIT]

    asyncio.run(test())


X = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize(
    "other",
    [
        ("", None, {"y": X}),
        ("", None, {"x": X.reshape(3, 2)}),
        ("", None, {"x": X.view(np.float32)}),
        ("", None, {"x": X, "z": X}),
        ("", ("y",), {"x": X}),
        ("shop", None, {"x": X}),
        ("", None, {"x": np.array([[1, 1, 2], [3, 4, 5]], np.int32)}),
    ],
)
def test_requests_that_differ_in_anything_have_keys_of_their_own(other: tuple[Any, Any, Any]) -> None:
    assert request_key(*other) != request_key("", None, {"x": X})


def test_keys_depend_on_contents_and_not_on_where_they_lie() -> None:
    strided: Any = np.repeat(X, 2, axis=1)[:, ::2]
    assert request_key("", None, {"a": X, "b": X}) == request_key("", None, {"b": strided, "a": X.copy()})
    texts = [np.array(one, object) for one in ([b"ab", b"c"], [b"a", b"bc"], [b"ab", b"c"])]
    first, shifted, again = (request_key("", None, {"x": one}) for one in texts)
    assert first == again != shifted
    assert request_key("", None, {"x": np.float32([0.0])}) != request_key("", None, {"x": np.float32([-0.0])})
