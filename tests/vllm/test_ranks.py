"""A real vLLM of two ranks, and what happens to it: each fault ends in an error within its limit, and it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from penstock.errors import PenstockError, QueueFull, Unavailable
from penstock.generation.values import GenerationRequest
from penstock.hosting.generation.managed.generator import ManagedGenerator
from tests.vllm.bytes_model import PATIENCE_S, Clock, generator, members, ranks, rows, running
from tests.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(2 * PATIENCE_S)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sharded(
    models: Path, interpreter: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ManagedGenerator]:
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if (os.cpu_count() or 1) > 1 else {}
    made = generator(
        models, tmp_path_factory.mktemp("two-ranks"), interpreter, tensor_parallel=2, max_sequences=2, max_waiting=1,
        environment=environment,
    )  # fmt: skip
    with Clock("two tensor ranks, from start to first token"):
        await made.start()
    yield made
    with Clock("their end"):
        await made.close(0.0)


def asked(ids: tuple[int, ...] = (5, 6, 7), new: int = 8) -> GenerationRequest:
    return GenerationRequest(id="a", prompt_ids=ids, max_new_tokens=new, ignore_end=True)


async def whole(made: ManagedGenerator, request: GenerationRequest) -> list[int]:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    return [event.token async for event in made.generate(request, deadline=deadline)]


async def error_of(made: ManagedGenerator, request: GenerationRequest) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await whole(made, request)
    return caught.value


async def check_answers(made: ManagedGenerator, models: Path) -> None:
    for prompt, new in rows(models):
        assert await whole(made, asked(prompt, len(new))) == new


async def is_back(made: ManagedGenerator, models: Path, starts: int) -> None:
    with Clock("until it is back"):
        await until("back", lambda: made.counts().starts == starts and made.health().is_well, patience_s=PATIENCE_S)
    await check_answers(made, models)


async def test_two_ranks_answer_as_transformers_does(sharded: ManagedGenerator, models: Path) -> None:
    assert sharded.pid is not None
    assert len(ranks(sharded.pid)) == 2
    await check_answers(sharded, models)


async def test_a_reader_that_goes_ends_the_work(sharded: ManagedGenerator) -> None:
    life = sharded._lives.current
    assert life is not None
    async with aclosing(sharded.generate(asked(new=480), deadline=asyncio.get_running_loop().time() + 60)) as stream:
        await anext(stream)
        assert await running(life.url) == 1
    async with asyncio.timeout(60):
        while await running(life.url):  # noqa: ASYNC110, another process is asked
            await asyncio.sleep(0.05)


async def test_a_full_queue_says_when_to_come_back(sharded: ManagedGenerator) -> None:
    results = await asyncio.gather(*(whole(sharded, asked(new=50)) for _ in range(8)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 5
    assert all(error.retry_after_s for error in refused)
    assert [len(result) for result in results if isinstance(result, list)] == [50] * 3


async def test_a_killed_rank_is_an_error_and_it_comes_back(sharded: ManagedGenerator, models: Path) -> None:
    pid, starts = sharded.pid, sharded.counts().starts
    assert pid is not None
    victim = ranks(pid)[-1]
    victim.suspend()  # or the answer would be at its end first: the model is tiny
    task = asyncio.create_task(error_of(sharded, asked(new=500)))
    await until("a request", lambda: sharded.outstanding == 1)
    with Clock("from a rank's death to the error"):
        victim.kill()
        error = await task
    print(f"  {error.message}")
    assert isinstance(error, Unavailable)
    assert error.retry_after_s is not None
    await is_back(sharded, models, starts + 1)
    assert not members(pid)


async def test_a_stopped_worker_is_an_error_within_its_limit_and_it_comes_back(
    sharded: ManagedGenerator, models: Path
) -> None:
    pid, starts = sharded.pid, sharded.counts().starts
    assert pid is not None
    victim = ranks(pid)[0]
    victim.suspend()
    task = asyncio.create_task(error_of(sharded, asked(new=500)))
    await until("a request", lambda: sharded.outstanding == 1)
    with Clock("from a worker's stop to the error"):
        error = await task
    print(f"  {error.message}")
    assert isinstance(error, Unavailable)
    assert "sent no token for 60 s" in error.message
    await until("the end of it", lambda: sharded.counts().hangs == 1)
    await is_back(sharded, models, starts + 1)
    assert not members(pid)


async def test_a_sigterm_during_a_stream_ends_it_whole_or_with_an_error(
    sharded: ManagedGenerator, models: Path
) -> None:
    pid, starts = sharded.pid, sharded.counts().starts
    assert pid is not None
    task = asyncio.create_task(whole(sharded, asked(new=300)))
    await until("a request", lambda: sharded.outstanding == 1)
    with Clock("from SIGTERM to the end of the stream"):
        os.killpg(pid, signal.SIGTERM)
        (result,) = await asyncio.gather(task, return_exceptions=True)
    print(f"  {result if isinstance(result, Exception) else 'whole'}")
    assert isinstance(result, Unavailable) or (isinstance(result, list) and len(result) == 300)
    await is_back(sharded, models, starts + 1)
    assert not members(pid)
