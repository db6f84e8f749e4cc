"""The generate extension over real sockets: whole, in parts, refused, broken off, and left."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from penstock.errors import QueueFull
from penstock.generation.values import Sampling
from penstock.openai.sse import SseDecoder
from tests.penstock.http.text_house import VERSION, House, text_house, tokenizer
from tests.waiting import until

TEXT = "The quick café 🙂"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with text_house(tmp_path) as made:
        yield made
        await until("everything is given back", lambda: made.is_quiet)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def url(house: House, verb: str = "generate", model: str = "echo") -> str:
    return f"{house.tcp}/v2/models/{model}/{verb}"


async def streamed(http: aiohttp.ClientSession, where: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with http.post(where, json=body) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        return [json.loads(event.data) for event in SseDecoder().feed(await answer.read())]


async def test_a_whole_answer_says_who_gave_it_and_what_it_took(house: House, http: aiohttp.ClientSession) -> None:
    body = {"id": "r7", "text_input": TEXT, "zebra": 1, "parameters": {"return_token_ids": True, "stream": False}}
    async with http.post(url(house), json=body) as answer:
        document = await answer.json()
    tokens = len(tokenizer().encode(TEXT))
    assert len(document.pop("token_ids")) == tokens + 1
    assert document == {
        "id": "r7",
        "model_name": "echo",
        "model_version": VERSION,
        "text_output": TEXT,
        "finish_reason": "stop",
        "stop_reason": document["stop_reason"],
        "usage": {"prompt_tokens": tokens, "completion_tokens": tokens + 1},
        "parameters": {"served_by": "edge", "reason": "kept", "ignored": "zebra"},
    }


async def test_a_stream_has_the_text_in_parts_and_the_account_in_the_last(
    house: House, http: aiohttp.ClientSession
) -> None:
    where = f"{house.tcp}/v2/models/echo/versions/v3/generate_stream"
    parts = await streamed(http, where, {"id": "s", "text_input": TEXT})
    assert "".join(part["text_output"] for part in parts) == TEXT
    assert len(parts) > 3
    assert {(part["id"], part["model_name"], part["model_version"]) for part in parts} == {("s", "echo", "v3")}
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert parts[-1]["parameters"]["served_by"] == "edge"
    assert "parameters" not in parts[0]
    assert house.plane.asked[0][1].version == "v3"


async def test_parameters_are_those_of_openais_fields(house: House, http: aiohttp.ClientSession) -> None:
    parameters = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 11, "max_tokens": 2, "stop": ["zz"], "logprobs": True,
        "top_logprobs": 1, "priority": 2, "local_only": True, "timeout": 4_000_000,
    }  # fmt: skip
    async with http.post(url(house), json={"text_input": "abc", "parameters": parameters}) as answer:
        document = await answer.json()
    assert [len(entry["top_logprobs"]) for entry in document["logprobs"]] == [1, 1]
    assert document["finish_reason"] == "length"
    context, asked = house.plane.asked[0]
    assert asked.sampling == Sampling(temperature=0.5, top_p=0.9, top_k=3, seed=11)
    assert (asked.max_new_tokens, asked.stop, asked.version) == (2, ("zz",), "")
    assert dict(asked.parameters) == {"priority": 2, "local_only": True, "timeout": 4_000_000}
    assert (context.priority, context.deadline - context.arrived_at) == (2, pytest.approx(4.0))


REFUSED: list[tuple[object, str]] = [
    ({}, "text_input"),
    ({"text_input": ""}, "text_input: empty"),
    ({"text_input": 1}, "text_input"),
    ({"text_input": "a", "parameters": {"temperature": "hot"}}, "parameters.temperature"),
    ({"text_input": "a", "max_tokens": 0}, "parameters.max_tokens"),
    ({"text_input": "a", "seed": 1, "parameters": {"seed": 1}}, "seed: stands beside"),
    ({"text_input": "a", "parameters": {"max_new_tokens": 3}}, "it is called max_tokens"),
    ({"text_input": "a", "parameters": {"top_logprobs": 3}}, "only with logprobs"),
    ({"text_input": "a", "parameters": {"ignore_eos": True}}, "parameters.ignore_eos: not done here"),
    ({"text_input": "a", "parameters": {"exclude_input_in_output": False}}, "never repeats"),
    ({"text_input": "a", "parameters": {"priority": -1}}, "priority"),
    ({"text_input": "a", "parameters": {"local_only": [1]}}, "parameters.local_only"),
    ([], "expected a JSON object"),
]


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
async def test_what_is_wrong_is_an_error_of_the_protocol(house: House, http: aiohttp.ClientSession, verb: str) -> None:
    for body, says in REFUSED:
        async with http.post(url(house, verb), json=body) as answer:
            assert answer.status == 400, body
            assert answer.headers["Content-Type"] == "application/json"
            assert says in (await answer.json())["error"]
    async with http.post(url(house, verb, "ghost"), json={"text_input": "a"}) as answer:
        assert answer.status == 404
    async with http.get(url(house, verb)) as answer:
        assert answer.status == 405
    house.plane.refused = QueueFull("full", retry_after_s=2.0)
    async with http.post(url(house, verb), json={"text_input": "a"}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


async def test_what_breaks_after_the_first_token_is_an_event(house: House, http: aiohttp.ClientSession) -> None:
    *parts, failed = await streamed(http, url(house, "generate_stream", "breaks"), {"text_input": "x"})
    assert "".join(part["text_output"] for part in parts) == "one!"
    assert list(failed) == ["error"]
    async with http.post(url(house, "generate", "breaks"), json={"text_input": "x"}) as answer:
        assert answer.status == 500


async def test_a_client_that_goes_away_stops_the_generation(house: House, http: aiohttp.ClientSession) -> None:
    body = {"text_input": "a", "max_tokens": 10**6}
    async with http.post(url(house, "generate_stream", "endless"), json=body) as answer:
        await answer.content.readany()
        answer.close()
    await until("the generation stops", lambda: house.is_quiet)
    assert house.model("endless").tokens < 10**5
    waiting = asyncio.create_task(http.post(url(house, "generate", "paced"), json={"text_input": "a"}))
    await until("it is begun", lambda: house.model("paced").running)
    waiting.cancel()
    await until("the other stops, too", lambda: house.is_quiet)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_shows_a_stream(house: House) -> None:
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sN", url(house, "generate_stream"), "-d", '{"text_input": "ab"}', stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await curl.communicate()
    blocks = shown.decode().strip().split("\n\n")
    assert "".join(json.loads(block.removeprefix("data: "))["text_output"] for block in blocks) == "ab"
