"""Whose trial is next, after a process died and nobody knows of which model."""

from __future__ import annotations

import asyncio

from edge_agent.updates.turns import Turns


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_without_an_order_nobody_waits() -> None:
    turns = Turns(())
    await turns.take("a")
    await turns.take("b")


async def test_turns_are_taken_in_order_and_one_at_a_time() -> None:
    turns = Turns(("a", "b", "c"))
    third, second = asyncio.create_task(turns.take("c")), asyncio.create_task(turns.take("b"))
    await settle()
    assert not second.done(), "a comes first, although it has not asked yet"
    await turns.take("a")
    await turns.take("a")  # its next version is proven beside it: one turn
    await settle()
    assert not second.done()
    await turns.pass_on("a")
    await settle()
    assert (second.done(), third.done()) == (True, False)
    await turns.pass_on("b")
    await asyncio.wait_for(third, 1.0)


async def test_who_has_nothing_to_try_gives_up_its_place_and_a_newcomer_waits_for_the_others() -> None:
    turns = Turns(("a", "b"))
    await turns.take("a")
    newcomer, second = asyncio.create_task(turns.take("new")), asyncio.create_task(turns.take("b"))
    await turns.pass_on("b")
    await settle()
    assert [newcomer.done(), second.done()] == [False, False]
    await turns.pass_on("a")
    await settle()
    assert newcomer.done() != second.done()


async def test_who_stops_waiting_keeps_nobody_waiting() -> None:
    turns = Turns(("a", "b"))
    waiting = asyncio.create_task(turns.take("b"))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await turns.pass_on("b")
    await turns.take("a")
