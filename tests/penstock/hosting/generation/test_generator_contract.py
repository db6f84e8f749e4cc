"""What every generator does, wherever it runs: one suite for all implementations of the port.

Each row of ``GENERATORS`` starts one whose model answers a prompt with its own letters, over and over, and has four
slots, room for two more, and a few milliseconds for each step. Processes and sockets are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.generation.values import TokenEvent
from penstock.hosting.generation.generator import Generator
from penstock.hosting.generation.process import ProcessGenerator
from penstock.hosting.generation.remote import RemoteGenerator
from penstock.hosting.generation.settings import GenerationSettings, LineSettings, RemoteSettings
from penstock.runtime.generation import EngineFacts
from tests.penstock.hosting.generation.letters import asked, model
from tests.penstock.hosting.generation.letters_server import serving
from tests.penstock.hosting.generation.managed.stand_in_model import managed
from tests.waiting import PATIENCE_S, until


async def _process(directory: Path) -> Generator:
    settings = GenerationSettings(line=LineSettings(max_waiting=2))
    letters = model(directory, step_s=0.002, context_tokens=100_000)
    generator = ProcessGenerator("letters", model=letters, settings=settings)
    await generator.start()
    return generator


class Remote(RemoteGenerator):
    """One whose server is in this process, and ends with it."""

    async def start(self) -> None:
        self._server = serving()
        self._urls = ((await self._server.__aenter__()).url,)
        await super().start()

    async def close(self, timeout_s: float) -> None:
        await super().close(timeout_s)
        server, self._server = self._server, contextlib.nullcontext()  # type: ignore[assignment]
        await server.__aexit__(None, None, None)


async def _remote(directory: Path) -> Generator:
    facts = EngineFacts(context_tokens=100_000, vocabulary=1024, slots=4, end_ids=frozenset({1}), kv_bytes_per_token=1)
    generator = Remote("letters", ["http://later:1"], facts=facts, settings=RemoteSettings(max_outstanding=6))
    await generator.start()
    return generator


async def _managed(directory: Path) -> Generator:
    generator = managed(directory)
    await generator.start()
    return generator


Start = Callable[[Path], Awaitable[Generator]]
GENERATORS: Mapping[str, Start] = {"process": _process, "remote": _remote, "managed": _managed}


pytestmark = pytest.mark.asyncio(loop_scope="module")
each_kind = pytest.mark.parametrize("kind", GENERATORS)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=GENERATORS)
async def generator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Generator]:
    """One for all tests that leave it as it was, which each shows for the one before it."""
    made = await GENERATORS[request.param](tmp_path_factory.mktemp("model"))
    yield made
    await made.close(0.0)


def soon() -> float:
    return asyncio.get_running_loop().time() + PATIENCE_S


async def whole(generator: Generator, request: Any, deadline: float | None = None) -> list[TokenEvent]:
    return [event async for event in generator.generate(request, deadline=soon() if deadline is None else deadline)]


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


async def test_an_answer_comes_in_order_and_ends_with_its_usage(generator: Generator) -> None:
    events = await whole(generator, asked("hello", new=12))
    assert text(events) == "hellohellohe"
    assert [event.finish for event in events] == [None] * 11 + ["length"]
    usage = events[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 12)
    assert all(event.usage is None for event in events[:-1])
    assert 0 <= usage.cached_tokens <= usage.prompt_tokens


async def test_many_at_once_get_their_own_answers_also_under_one_id(generator: Generator) -> None:
    words = ["one", "two", "three", "four"]
    answers = await asyncio.gather(*(whole(generator, asked(word, new=len(word))) for word in words))
    assert [text(answer) for answer in answers] == words


async def test_a_stop_string_is_no_part_of_the_answer(generator: Generator) -> None:
    events = await whole(generator, asked("hello", new=100, stop=("lohe",)))
    assert text(events) == "hel"
    assert events[-1].finish == "stop"


@pytest.mark.parametrize("wrong", [{"prompt_ids": ()}, {"prompt_ids": (10**6,)}, {"max_new_tokens": 10**6}])
async def test_what_it_cannot_do_is_refused_and_hurts_nobody(generator: Generator, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        await whole(generator, msgspec.structs.replace(asked(), **wrong))
    assert text(await whole(generator, asked("ok", new=2))) == "ok"


async def test_what_is_late_is_not_run(generator: Generator) -> None:
    with pytest.raises(DeadlineExceeded):
        await whole(generator, asked(), deadline=asyncio.get_running_loop().time() - 1.0)
    assert text(await whole(generator, asked("ok", new=2), deadline=math.inf)) == "ok"


async def test_what_runs_is_cut_at_its_deadline(generator: Generator) -> None:
    with pytest.raises(DeadlineExceeded, match="after"):
        await whole(generator, asked(new=90_000), deadline=asyncio.get_running_loop().time() + 0.5)
    assert text(await whole(generator, asked("ok", new=2))) == "ok"


async def test_too_many_are_refused_and_those_inside_go_on(generator: Generator) -> None:
    tasks = [asyncio.create_task(whole(generator, asked(new=50, id=str(number)))) for number in range(12)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 6
    assert all(error.retry_after_s for error in refused)
    assert all(len(result) == 50 for result in results if isinstance(result, list))


async def test_closing_an_iterator_makes_room(generator: Generator) -> None:
    for _ in range(3):
        streams = [generator.generate(asked(new=90_000, id=str(number)), deadline=soon()) for number in range(4)]
        for stream in streams:
            await anext(stream)
        for stream in streams:
            await stream.aclose()
    async with aclosing(generator.generate(asked("ok", new=2), deadline=soon())) as stream:
        assert text([event async for event in stream]) == "ok"


async def test_cancelling_who_reads_makes_room(generator: Generator) -> None:
    tasks = [asyncio.create_task(whole(generator, asked(new=90_000, id=str(number)))) for number in range(6)]
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert text(await whole(generator, asked("ok", new=2))) == "ok"


async def test_it_says_what_it_takes(generator: Generator) -> None:
    facts = generator.facts
    assert facts.context_tokens >= 512
    assert facts.slots == 4


# -- the end of one -----------------------------------------------------------------------------------------------


@each_kind
async def test_a_closed_one_refuses_and_says_why(kind: str, tmp_path: Path) -> None:
    generator = await GENERATORS[kind](tmp_path)
    assert generator.health().is_well
    await generator.close(0.0)
    await generator.close(0.0)
    assert not generator.health().is_well
    assert generator.health().why
    with pytest.raises(Unavailable):
        await whole(generator, asked())


@each_kind
async def test_closing_waits_for_what_runs(kind: str, tmp_path: Path) -> None:
    generator = await GENERATORS[kind](tmp_path)
    stream = generator.generate(asked("hello", new=30), deadline=soon())
    first = await anext(stream)
    closing = asyncio.create_task(generator.close(PATIENCE_S))
    await until("closing", lambda: not generator.health().is_well)
    with pytest.raises(Unavailable):
        await whole(generator, asked())
    assert text([first, *[event async for event in stream]]) == "hello" * 6
    await closing


@each_kind
async def test_closing_without_patience_ends_what_runs_with_an_error(kind: str, tmp_path: Path) -> None:
    generator = await GENERATORS[kind](tmp_path)
    stream = generator.generate(asked("hello", new=90_000), deadline=soon())
    await anext(stream)
    await generator.close(0.0)
    with pytest.raises(PenstockError) as caught:
        [event async for event in stream]
    assert isinstance(caught.value, Unavailable)
