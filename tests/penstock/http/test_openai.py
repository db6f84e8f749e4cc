"""OpenAI's API over real sockets: its own client unmodified, curl, and clients that go away or do not read."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import QueueFull, QuotaExceeded
from penstock.generation.plane import TextAnswer
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.remote_server import RemoteServer
from penstock.hosting.generation.settings import RemoteSettings
from penstock.http.openai import AT_ONCE, merged
from penstock.http.texts import MAX_BODY_BYTES, MAX_READING_BYTES
from tests.penstock.http.text_house import VERSION, House, text_house, tokenizer
from tests.penstock.openai.texts import events, token_bytes
from tests.waiting import until

openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")

TEXT = "The quick café 🙂"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with text_house(tmp_path) as made:
        yield made
        await until("everything is given back", lambda: made.is_quiet)


@pytest.fixture
async def client(house: House) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{house.tcp}/v1", api_key="me", max_retries=0) as made:
        yield made


def said(text: str = TEXT) -> list[Any]:
    return [{"role": "user", "content": text}]


async def sent(where: House, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(where.socket)
    writer.write(request)
    await writer.drain()
    return reader, writer


def post(path: str, /, **fields: Any) -> bytes:
    body = json.dumps(fields).encode()
    return b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        path.encode(), len(body), body,
    )  # fmt: skip


async def test_the_client_gets_a_chat_with_an_account_of_who_answered(house: House, client: Any) -> None:
    answer = await client.chat.completions.create(model="echo", messages=said(), extra_body={"zebra": 1})
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (TEXT, "assistant", "stop")
    prompt = len(tokenizer().encode(TEXT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, prompt + 1)
    assert (answer.system_fingerprint, answer.created, answer.id[:9]) == (VERSION, 1_700_000_000, "chatcmpl-")
    assert answer.penstock == {"served_by": "edge", "reason": "kept", "ignored": "zebra"}
    context, asked = house.plane.asked[0]
    assert (context.tenant, asked.sampling) == ("me", None)


async def test_the_client_streams_a_chat_and_its_usage(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="echo", messages=said(), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *texts, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == TEXT
    assert (usage.choices, usage.usage.prompt_tokens) == ([], len(tokenizer().encode(TEXT)))
    assert texts[-1].choices[0].finish_reason == "stop"
    assert texts[-1].penstock["served_by"] == "edge"


async def test_the_client_that_waits_works_in_threads(house: House) -> None:
    def ask() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{house.tcp}/v1", api_key="me") as client:
            whole = client.completions.create(model="echo", prompt=TEXT).choices[0].text
            with client.completions.create(model="echo", prompt=TEXT, stream=True) as stream:
                return whole, "".join(chunk.choices[0].text for chunk in stream)

    assert await asyncio.to_thread(ask) == (TEXT, TEXT)


async def test_several_answers_and_several_prompts_come_by_index(client: Any) -> None:
    ids = tokenizer().encode("dog")
    whole = await client.completions.create(model="echo", prompt=["fox", "jumps"], n=2)
    assert [choice.text for choice in whole.choices] == ["fox", "fox", "jumps", "jumps"]
    stream = await client.completions.create(model="echo", prompt=[ids, ids * 2], n=2, stream=True)
    texts = [""] * 4
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["dog", "dog", "dogdog", "dogdog"]


async def test_log_probabilities_come_in_both_shapes(client: Any) -> None:
    chat = await client.chat.completions.create(model="echo", messages=said(), logprobs=True, top_logprobs=2)
    content = chat.choices[0].logprobs.content
    told = bytes(byte for entry in content[:-1] for byte in entry.bytes)
    assert told.decode() == TEXT
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(content)
    text = await client.completions.create(model="echo", prompt=TEXT, logprobs=2)
    lists = text.choices[0].logprobs
    assert len(lists.tokens) == len(lists.text_offset) == len(lists.token_logprobs) == len(content)
    assert lists.tokens[0] == TEXT[: lists.text_offset[1]]


async def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(client: Any) -> None:
    stream = await client.chat.completions.create(model="echo", messages=said(), stream=True, stop=["caf"])
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The quick "
    assert (chunks[-1].choices[0].finish_reason, chunks[-1].choices[0].stop_reason) == ("stop", "caf")


async def test_a_limit_ends_an_answer_and_says_so(client: Any) -> None:
    answer = await client.chat.completions.create(model="endless", messages=said("a"), max_completion_tokens=5)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("aaaaa", "length")


async def test_models_are_listed_and_found_by_name(client: Any) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == ["breaks", "echo", "endless", "paced", "vectors"]
    assert (await client.models.retrieve("echo")).max_model_len == 512
    with pytest.raises(openai.NotFoundError, match="known: breaks, echo"):
        await client.models.retrieve("a/b")


async def test_what_a_prompt_becomes_is_found_out_once_for_all_answers_to_it(house: House, client: Any) -> None:
    answer = await client.completions.create(model="echo", prompt=["one", "two"], n=64, temperature=1, seed=1)
    assert len(answer.choices) == 128
    known = [request.known_ids for _, request in house.plane.asked]
    assert [place for place, ids in enumerate(known) if ids is None] == [0, 64]
    assert set(known[65:]) == {tuple(tokenizer().encode("two"))}


async def test_embeddings_come_as_the_client_asks_for_them(client: Any) -> None:
    rows = [tokenizer().encode("the dog"), [5, 6]]
    for form in ({}, {"encoding_format": "float"}):
        one = await client.embeddings.create(model="echo", input="the dog", **form)
        assert one.data[0].embedding == [len(rows[0]), sum(rows[0])]
    two = await client.embeddings.create(model="echo", input=[[5, 6], [7]])
    assert [entry.embedding for entry in two.data] == [[2, 11], [1, 7]]
    assert two.usage.prompt_tokens == 3
    assert two.model_extra["penstock"] == {"served_by": "edge"}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_before_the_first_token_has_a_status(house: House, client: Any, stream: bool) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as wrong:
        await ask(model="echo", messages=said(), n=0, stream=stream)
    assert (wrong.value.param, wrong.value.code, wrong.value.type) == ("n", "invalid-input", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="no model 'nothing'"):
        await ask(model="nothing", messages=said(), stream=stream)
    house.plane.refused = QuotaExceeded("over the rate", limit=3, reset_s=1.5)
    with pytest.raises(openai.RateLimitError) as limited:
        await ask(model="echo", messages=said(), stream=stream)
    assert limited.value.response.headers["retry-after"] == "2"
    house.plane.refused = QueueFull("full", retry_after_s=0.5)
    with pytest.raises(openai.InternalServerError) as full:
        await ask(model="echo", messages=said(), n=3, stream=stream)
    assert (full.value.status_code, full.value.code) == (503, "queue-full")
    assert full.value.response.headers["retry-after-ms"] == "500"
    house.plane.refused = None
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        await client.completions.create(model="echo", prompt=[10**6], stream=stream)


async def test_what_breaks_later_is_an_error_event_and_no_end(house: House, client: Any) -> None:
    stream = await client.completions.create(model="breaks", prompt="x", stream=True)
    texts = [(await anext(stream)).choices[0].text for _ in range(4)]
    with pytest.raises(openai.APIError, match="script has this step fail") as broken:
        await anext(stream)
    assert ("".join(texts), broken.value.code) == ("one!", "internal")
    reader, writer = await sent(house, post("/v1/completions", model="breaks", prompt="x", stream=True))
    body = await reader.read()
    writer.close()
    assert b'"error"' in body
    assert b"[DONE]" not in body
    assert body.endswith(b"0\r\n\r\n")  # the message is whole: what failed is said in it


async def test_each_token_is_on_its_way_before_the_next_is_made(house: House, client: Any) -> None:
    paced = house.model("paced")
    assert paced.pace is not None
    paced.pace.release()
    stream = await client.chat.completions.create(model="paced", messages=said("ab"), stream=True)
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    for made, text in enumerate("ab", 1):
        assert (await anext(stream)).choices[0].delta.content == text
        assert paced.tokens == made
        paced.pace.release()
    assert (await anext(stream)).choices[0].finish_reason == "stop"


async def test_a_stream_that_is_abandoned_stops_its_generator(house: House, client: Any) -> None:
    stream = await client.chat.completions.create(model="endless", messages=said("a"), stream=True, max_tokens=10**6)
    await anext(stream)
    await anext(stream)
    await stream.close()
    await until("the generator stops", lambda: house.is_quiet)
    assert house.model("endless").tokens < 10**6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_goes_away_while_nothing_comes_stops_its_generators(
    house: House, stream: bool, n: int
) -> None:
    request = post("/v1/completions", model="paced", prompt="abc", stream=stream, n=n)
    _, writer = await sent(house, request)
    paced = house.model("paced")
    await until("all answers are begun", lambda: paced.running == n)
    writer.close()
    await until("the generators stop", lambda: house.is_quiet)
    assert paced.tokens == 0


async def test_a_client_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    async with text_house(tmp_path, write_s=0.05) as house:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.setblocking(False)
            await asyncio.get_running_loop().sock_connect(silent, str(house.socket))
            request = post("/v1/completions", model="endless", prompt="a", stream=True, max_tokens=10**6, logprobs=5)
            await asyncio.get_running_loop().sock_sendall(silent, request)
            endless = house.model("endless")
            await until("it has begun", lambda: endless.running)
            await until("it is given up", lambda: house.is_quiet)
            assert endless.tokens < 10**5


async def test_a_connection_serves_on_after_a_stream(house: House) -> None:
    reader, writer = await sent(house, post("/v1/completions", model="echo", prompt="a", stream=True).replace(
        b"Connection: close\r\n", b"") * 2)  # fmt: skip
    assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
    assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HEAD /v1/models", b"200"),
        (b"HEAD /v1/chat/completions", b"405"),
        (b"GET /v1/chat/completions", b"405"),
        (b"DELETE /v1/models/echo", b"405"),
        (b"GET /v1/nothing", b"404"),
    ],
)
async def test_methods_and_paths_that_do_not_fit_are_told(house: House, line: bytes, status: bytes) -> None:
    reader, writer = await sent(house, line + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] == status
    if status == b"405" and not line.startswith(b"HEAD"):
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["param"] == "method"


async def test_a_body_that_is_too_large_for_a_text_is_refused_unread(house: House) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    reader, writer = await sent(house, head.encode())
    assert (await reader.readline()).split(b" ")[1] == b"413"
    writer.close()


async def test_bodies_that_nobody_has_let_in_are_bounded_together(house: House) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode()
    unfinished = [await sent(house, head) for _ in range(MAX_READING_BYTES // MAX_BODY_BYTES)]
    reader, writer = await sent(house, post("/v1/completions", model="echo", prompt="a"))  # small ones pass
    assert (await reader.readline()).split(b" ")[1] == b"200"
    refused, last = await sent(house, head)
    answer = await refused.readuntil(b"\r\n\r\n")
    assert answer.split(b" ")[1] == b"503"
    assert b"Retry-After: 1" in answer
    for _, one in (*unfinished, (refused, last), (reader, writer)):
        one.close()

    async def is_let_in() -> bool:
        request = post("/v1/completions", model="echo", prompt="a", user="x" * 100_000)
        reader, writer = await sent(house, request)
        answer = await reader.read()
        writer.close()
        return answer.split(b" ")[1] == b"200"

    for _ in range(100):
        if await is_let_in():
            return
    raise AssertionError("what was being read is not given back")


async def test_a_deadline_and_a_priority_reach_the_plane(house: House) -> None:
    request = post("/v1/completions", model="echo", prompt="a", penstock={"priority": 2, "local_only": True})
    reader, writer = await sent(
        house, request.replace(b"Host", b"x-request-timeout-ms: 5000\r\nx-request-id: r\r\nHost")
    )
    answer = await reader.read()
    writer.close()
    assert b"x-request-id: r" in answer
    context, asked = house.plane.asked[0]
    assert (context.deadline - context.arrived_at, context.priority) == (pytest.approx(5.0), 2)
    assert asked.parameters["local_only"] is True


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_shows_a_stream(house: House) -> None:
    body = json.dumps({"model": "echo", "messages": said("ab"), "stream": True})
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sN", "-i", f"{house.tcp}/v1/chat/completions", "-d", body, stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await curl.communicate()
    head, _, events_text = shown.decode().partition("\r\n\r\n")
    assert "Content-Type: text/event-stream" in head
    blocks = events_text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    assert all(json.loads(block.removeprefix("data: "))["object"] for block in blocks[:-1])


@pytest.mark.parametrize("stop", [(), ("caf",)])
async def test_a_replica_of_ours_reads_the_events_that_were_written(house: House, stop: tuple[str, ...]) -> None:
    request = GenerationRequest(
        id="r", prompt_ids=tuple(tokenizer().encode(TEXT)), max_new_tokens=64, stop=stop, top_logprobs=2
    )
    server = RemoteServer(f"{house.tcp}/v1", "echo", RemoteSettings(), None)
    try:
        read = [event async for event in server.events(request)]
    finally:
        await server.close()
    made = [event async for event in house.model("echo").generate(request, deadline=0.0)]
    assert read == made


def answer_of(made: list[TokenEvent | Exception], closed: list[str], name: str = "") -> TextAnswer:
    async def generate() -> Any:
        try:
            for event in made:
                await asyncio.sleep(0)
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            closed.append(name)

    return TextAnswer(events=generate(), prompt_ids=(), token_bytes=token_bytes, account={})


async def test_side_by_side_every_event_of_every_answer_is_read_once() -> None:
    texts, closed = ["abc", "", "de"], []
    got = ["", "", ""]
    async for index, event in merged([answer_of([*events(text)], closed) for text in texts]):
        got[index] += event.text
    assert (got, len(closed)) == (texts, 3)


async def test_one_that_fails_ends_the_reading_of_all() -> None:
    closed: list[str] = []
    answers = [answer_of([*events("a" * 50)], closed, "long"), answer_of([QueueFull("full")], closed, "failed")]
    with pytest.raises(QueueFull):
        async for _ in merged(answers):
            pass
    for answer in answers:
        await answer.events.aclose()
    assert sorted(closed) == ["failed", "long"]


async def test_one_request_for_many_answers_leaves_room_for_others() -> None:
    running, most, count = 0, 0, 3 * AT_ONCE + 1

    async def one(text: str) -> AsyncIterator[TokenEvent]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for event in events(text):
            await asyncio.sleep(0)
            yield event
        running -= 1

    answers = [answer_of([], []) for _ in range(count)]
    for place, answer in enumerate(answers):
        answer.events = one(f"<{place}>")  # type: ignore[assignment]
    got = [""] * count
    async for index, event in merged(answers):
        got[index] += event.text
    assert got == [f"<{place}>" for place in range(count)]
    assert most == AT_ONCE
