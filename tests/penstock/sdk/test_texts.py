"""Texts through both clients over real sockets: whole, in parts, refused, broken off, late, and left."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import AsyncClient, Client, Text
from penstock.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    PenstockError,
    QueueFull,
    QuotaExceeded,
    Unavailable,
)
from penstock.generation.values import Sampling
from penstock.sdk.texts import TextReader, text_call
from tests.penstock.http.text_house import VERSION, House, text_house, tokenizer
from tests.waiting import until

TEXT = "The quick café 🙂"
SAID = [{"role": "user", "content": TEXT}]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with text_house(tmp_path) as made:
        yield made
        await until("everything is given back", lambda: made.is_quiet)


@pytest.fixture(params=["http", "unix"])
def target(house: House, request: pytest.FixtureRequest) -> str:
    return house.tcp if request.param == "http" else f"unix://{house.socket}"


async def both(target: str, method: str, *arguments: Any, **options: Any) -> list[Text]:
    """What both clients make of one call: one that waits in a thread, and one that does not."""

    def ask() -> Text:
        with Client(target) as client:
            made: Text = getattr(client, method)(*arguments, **options)
            return made

    async with AsyncClient(target) as client:
        return [await asyncio.to_thread(ask), await getattr(client, method)(*arguments, **options)]


async def test_a_text_comes_with_its_tokens_and_an_account_of_who_gave_it(house: House, target: str) -> None:
    for text in await both(target, "generate", "echo", TEXT):
        tokens = tokenizer().encode(TEXT)
        assert (text.text, str(text), text.finish_reason, text.logprobs) == (TEXT, TEXT, "stop", ())
        assert list(text.token_ids[:-1]) == list(tokens)
        assert text.usage is not None
        assert (text.usage.prompt_tokens, text.usage.completion_tokens) == (len(tokens), len(tokens) + 1)
        assert (text.model, text.version, text.served_by, text.reason) == ("echo", VERSION, "edge", "kept")
        assert (text.confidence, text.threshold, text.certificate) == (None, None, "")
    assert all(asked.sampling is None for _, asked in house.plane.asked)


async def test_ids_and_conversations_are_prompts_too(target: str) -> None:
    ids = tokenizer().encode("dog")
    for prompt in (ids, np.array(ids), tuple(ids)):
        assert [text.text for text in await both(target, "generate", "echo", prompt)] == ["dog", "dog"]
    assert [text.text for text in await both(target, "chat", "echo", SAID)] == [TEXT, TEXT]


async def test_every_option_reaches_the_plane(house: House) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 3, "stop": ["zz"], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 7,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "version": "sha256:abcd",
        "timeout": 9.0, "priority": 2, "parameters": {"local_only": True}, "request_id": "r",
    }  # fmt: skip
    for text in await both(house.tcp, "generate", "echo", "abcdefgh", **options):
        assert (text.finish_reason, len(text.token_ids)) == ("length", 3)
    for context, asked in house.plane.asked:
        assert asked.sampling == Sampling(
            temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, seed=7, presence_penalty=0.1, frequency_penalty=0.2,
            repetition_penalty=1.1,
        )  # fmt: skip
        assert (asked.max_new_tokens, asked.stop, asked.version) == (3, ("zz",), "sha256:abcd")
        assert (context.priority, context.request_id, asked.parameters["local_only"]) == (2, "r", True)
        assert 8.0 < context.deadline - context.arrived_at <= 9.0
    await both(house.tcp, "generate", "echo", "a", version="v1")
    assert house.plane.asked[-1][1].version == "v1"


@pytest.mark.parametrize(("method", "prompt"), [("generate", TEXT), ("chat", SAID)])
async def test_log_probabilities_are_told_by_id(house: House, method: str, prompt: Any) -> None:
    first, second = await both(house.tcp, method, "echo", prompt, logprobs=2)
    assert first.logprobs == second.logprobs
    assert len(first.logprobs) == len(first.token_ids) == len(first.top_logprobs)
    assert all(math.isfinite(one) and one <= 0 for one in first.logprobs)
    assert {len(top) for top in first.top_logprobs} == {2}
    for token, logprob, top in zip(first.token_ids, first.logprobs, first.top_logprobs, strict=True):
        assert top[0] == (token, pytest.approx(logprob))


@pytest.mark.parametrize("prompt", [TEXT, SAID])
async def test_a_stream_has_parts_and_knows_the_answer_in_the_end(target: str, prompt: Any) -> None:
    def read() -> tuple[list[str], Text]:
        with Client(target) as client, client.stream("echo", prompt, logprobs=0) as parts:
            with pytest.raises(InvalidInput, match="not whole yet"):
                _ = parts.answer
            return [part.text for part in parts], parts.answer

    texts, answer = await asyncio.to_thread(read)
    (whole, *_) = await both(target, "generate" if prompt is TEXT else "chat", "echo", prompt, logprobs=0)
    assert len(texts) > 3
    assert "".join(texts) == answer.text == TEXT
    assert (answer.token_ids, answer.usage, answer.served_by) == (whole.token_ids, whole.usage, "edge")
    assert answer.logprobs == whole.logprobs
    async with AsyncClient(target) as client:
        parts = client.stream("echo", prompt)
        assert "".join([str(part) async for part in parts]) == TEXT
        assert parts.answer.finish_reason == "stop"


async def test_who_leaves_a_stream_stops_the_server(house: House, target: str) -> None:
    def leave() -> None:
        with Client(target) as client:
            with client.stream("endless", "a", max_new_tokens=10**6) as parts:
                next(parts)
            assert client.generate("echo", "b").text == "b"  # its connections are well

    await asyncio.to_thread(leave)
    await until("the generation stops", lambda: house.is_quiet)
    async with AsyncClient(target) as client:
        async with client.stream("endless", "a", max_new_tokens=10**6) as stream:
            async for _ in stream:
                break
        await until("the other stops, too", lambda: house.is_quiet)
        waiting = asyncio.create_task(client.generate("paced", "a"))
        await until("it is begun", lambda: house.model("paced").running)
        waiting.cancel()
        await until("and what nobody waits for", lambda: house.is_quiet)
    assert house.model("endless").tokens < 10**5


async def test_connections_are_kept_after_a_stream_and_given_back_when_it_is_left(house: House) -> None:
    def ask() -> None:
        with Client(house.tcp, timeout=20.0) as client:
            transport: Any = client._transport
            for _ in range(40):  # more than there are connections
                parts = client.stream("echo", "ab")
                assert next(parts)
                parts.close()
            for _ in range(3):
                assert "".join(map(str, client.stream("echo", "ab"))) == "ab"
            assert len(transport._idle) == 1

    await asyncio.to_thread(ask)


async def test_what_takes_too_long_is_given_up_here_and_there(house: House) -> None:
    async with AsyncClient(house.tcp) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("paced", "a", timeout=0.2)
        with pytest.raises(DeadlineExceeded):
            async for _ in client.stream("endless", "a", max_new_tokens=10**6, timeout=0.2):
                pass

    def wait() -> None:
        with Client(house.tcp) as client:
            with pytest.raises(DeadlineExceeded):
                client.generate("paced", "a", timeout=0.2)
            with pytest.raises(DeadlineExceeded):
                list(client.stream("endless", "a", max_new_tokens=10**6, timeout=0.2))

    await asyncio.to_thread(wait)


@pytest.mark.parametrize("refused", [QuotaExceeded("spent", limit=5, remaining=0, reset_s=9.0), QueueFull("full")])
async def test_refusals_are_raised_as_they_were_meant(house: House, refused: PenstockError) -> None:
    house.plane.refused = refused
    async with AsyncClient(house.tcp) as client:
        with pytest.raises(type(refused), match=refused.message):
            await client.generate("echo", "a")
        with pytest.raises(type(refused), match=refused.message):
            await anext(client.stream("echo", "a"))
        house.plane.refused = None
        with pytest.raises(NotFound, match="known: "):
            await client.generate("ghost", "a")
        with pytest.raises(InvalidInput, match="temperature") as caught:
            await client.generate("echo", "a", temperature=7.0)
        assert caught.value.field == "temperature"


async def test_an_answer_that_breaks_off_is_an_error_at_its_part(house: House) -> None:
    def read() -> list[str]:
        said: list[str] = []
        with Client(house.tcp) as client, client.stream("breaks", "x") as parts:
            with pytest.raises(Internal):
                said.extend(part.text for part in parts)
            with pytest.raises(InvalidInput, match="not whole"):
                _ = parts.answer
            with pytest.raises(Internal):
                client.generate("breaks", "x")
        return said

    assert "".join(await asyncio.to_thread(read)) == "one!"


async def test_what_was_refused_with_a_hint_is_tried_again(house: House) -> None:
    house.plane.refused = Unavailable("loading", retry_after_s=0.01)
    async with AsyncClient(house.tcp, retries=1000) as client:
        waiting = asyncio.create_task(client.generate("echo", "a"))
        await until("it was refused", lambda: len(house.plane.asked) > 1)
        house.plane.refused = None
        assert (await waiting).text == "a"


@pytest.mark.parametrize("prompt", [None, 7, b"a", {"role": "user"}, ["a"], [{"role": "user"}, "a"], [1.5]])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidInput, match="expected a text, token ids, or a list of messages"):
        text_call("m", prompt, {})


def test_options_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match="no option 'temprature'; known: max_new_tokens"):
        text_call("m", "a", {"temprature": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InvalidInput, match="timeout= in seconds"):
        text_call("m", "a", {"parameters": {"timeout": 1}})
    with pytest.raises(InvalidInput, match="priority"):
        text_call("m", "a", {"priority": -1})
    with pytest.raises(InvalidInput, match="JSON"):
        text_call("m", "a", {"response_format": {"type": object()}})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>", Internal),
        (b"{}", Internal),
        (b'{"choices": [{"text": "a", "finish_reason": "abort"}]}', Unavailable),
        (b'{"choices": [{"text": 7}]}', Internal),
        (b'{"choices": []}', Internal),
        (b"[" * 100_000, Internal),
    ],
)
def test_answers_that_are_none_are_errors(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        TextReader(text_call("m", "a", {})).whole(body)


def test_a_probability_that_nobody_told_is_no_number() -> None:
    chat = (
        b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": null}]}, %b}]}'
    )
    completion = b'{"choices": [{"text": "a", "logprobs": {"token_logprobs": [null]}, %b}]}'
    for body in (chat, completion):
        text = TextReader(text_call("m", "a", {"logprobs": 0})).whole(body % b'"finish_reason": "stop"')
        assert (text.text, text.top_logprobs) == ("a", ((),))
        assert math.isnan(text.logprobs[0])


def test_a_stream_that_ends_early_is_an_error() -> None:
    reader = TextReader(text_call("m", "a", {}))
    assert [part.text for part in reader.feed(b'data: {"choices": [{"text": "a"}]}\n\n')] == ["a"]
    with pytest.raises(Unavailable, match="before the answer did"):
        reader.end()
