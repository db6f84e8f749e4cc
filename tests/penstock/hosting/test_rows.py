"""Rows joined, split, settled, and told apart when a batch fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from penstock.errors import Internal, InvalidInput, PenstockError, Unavailable
from penstock.hosting.queue import is_invalid
from penstock.hosting.rows import isolate, join, settle, split, work_of
from penstock.wire.tensors import Array


@dataclass(eq=False)
class Member:
    value: int
    future: asyncio.Future[int]
    rows: int = 1


def members(*values: int) -> list[Member]:
    loop = asyncio.get_running_loop()
    return [Member(value, loop.create_future()) for value in values]


def outcomes(made: Sequence[Member]) -> list[int | type[BaseException] | None]:
    return [
        None if not one.future.done() else type(error) if (error := one.future.exception()) else one.future.result()
        for one in made
    ]


@given(st.lists(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3))), min_size=1, max_size=5))
def test_splitting_gives_back_what_was_joined(parts: list[Array]) -> None:
    joined = join([{"x": part} for part in parts])
    for part, again in zip(parts, split(joined, [len(part) for part in parts]), strict=True):
        np.testing.assert_array_equal(again["x"], part)


@pytest.mark.parametrize("output", [np.zeros((3, 2)), np.zeros(()), np.zeros((1, 4))])
def test_outputs_that_do_not_keep_the_rows_are_nobodys(output: Array) -> None:
    with pytest.raises(Internal, match="for a batch of 4 rows"):
        split({"y": output}, [1, 3])


def test_a_single_request_may_have_outputs_of_any_shape() -> None:
    outputs = {"y": np.zeros(())}
    assert split(outputs, [4]) == [outputs]


def test_work_counts_elements_and_the_bytes_of_strings() -> None:
    text = np.array([[b"four"], [b""]], dtype=object)
    assert work_of({"x": np.zeros((2, 3), np.float32), "s": text}) == 6 + 2 + 4


async def test_a_caller_that_was_answered_or_went_away_is_left_alone() -> None:
    one, other = members(1, 2)
    one.future.cancel()
    settle(one.future, 1)
    settle(other.future, 2)
    settle(other.future, Internal("late"))
    assert other.future.result() == 2
    assert one.future.cancelled()


async def test_a_refusal_reaches_only_those_it_belongs_to_and_the_others_are_answered_meanwhile() -> None:
    made = members(*range(8))
    seen: list[list[int]] = []

    async def run(batch: Sequence[Member]) -> list[int]:
        seen.append([one.value for one in batch])
        if seen[-1] == [4, 5, 6, 7]:
            assert outcomes(made[:4]) == [0, 10, 20, 30]
        if 6 in seen[-1]:
            raise InvalidInput("six")
        return [one.value * 10 for one in batch]

    assert await isolate(made, run, may_be_one=is_invalid) is None
    assert outcomes(made) == [0, 10, 20, 30, 40, 50, InvalidInput, 70]
    assert seen == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [6], [7]]


async def test_those_that_nobody_waits_for_are_not_run() -> None:
    made = members(1, 2, 3)
    made[1].future.cancel()
    ran: list[int] = []

    async def run(batch: Sequence[Member]) -> list[int]:
        ran.extend(one.value for one in batch)
        return [one.value for one in batch]

    assert await isolate(made, run, may_be_one=is_invalid) == 0
    assert ran == [1, 3]


async def test_a_failure_that_is_nobodys_is_not_tried_again_and_everyone_gets_an_error_of_its_own() -> None:
    made = members(1, 2, 3)
    runs = 0

    async def run(batch: Sequence[Member]) -> list[int]:
        nonlocal runs
        runs += 1
        raise Unavailable("down", retry_after_s=2.0)

    assert await isolate(made, run, may_be_one=is_invalid) is None
    assert runs == 1
    errors = [one.future.exception() for one in made]
    assert len({id(error) for error in errors}) == 3
    assert all(isinstance(error, Unavailable) and error.retry_after_s == 2.0 for error in errors)


@pytest.mark.parametrize(("limit", "learned"), [(8, 0), (5, 4), (3, 2), (1, 1)])
async def test_a_batch_that_was_only_too_large_tells_how_much_is_taken(limit: int, learned: int) -> None:
    made = members(*range(8))

    async def run(batch: Sequence[Member]) -> list[int]:
        if len(batch) > limit:
            raise InvalidInput("too many rows")
        return [one.value for one in batch]

    assert await isolate(made, run, may_be_one=is_invalid) == learned
    assert outcomes(made) == list(range(8))


async def test_a_failure_that_went_away_tells_nothing_about_sizes() -> None:
    made = members(1, 2)
    failures: list[Exception] = [MemoryError("for a moment")]

    async def run(batch: Sequence[Member]) -> list[int | PenstockError]:
        if failures:
            raise failures.pop()
        return [one.value for one in batch]

    assert await isolate(made, run, may_be_one=lambda error: True) == 0
    assert outcomes(made) == [1, 2]


async def test_an_error_that_is_a_members_own_fails_it_alone_without_another_run() -> None:
    made = members(1, 2)

    async def run(batch: Sequence[Member]) -> list[int | PenstockError]:
        return [1, InvalidInput("its own")]

    assert await isolate(made, run, may_be_one=is_invalid) is None
    assert outcomes(made) == [1, InvalidInput]
