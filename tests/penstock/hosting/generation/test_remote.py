"""Servers of others: streams as they were recorded of vLLM, cut anywhere; which server is asked, and which is left."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from penstock.errors import Cancelled, ConfigError, InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.generation.values import Grammar, Sampling, TokenEvent
from penstock.hosting.generation.remote import RemoteGenerator
from penstock.hosting.generation.remote_server import completions_path, parsed
from penstock.hosting.generation.settings import RemoteSettings
from penstock.openai.completions import NO_TOKEN
from penstock.runtime.generation import EngineFacts
from tests.penstock.hosting.generation.letters import asked
from tests.penstock.hosting.generation.letters_server import (
    DONE,
    STREAM,
    Recorded,
    Server,
    chunk,
    event,
    serving,
    usage,
)
from tests.waiting import PATIENCE_S, until

FACTS = EngineFacts(
    context_tokens=100_000,
    vocabulary=1024,
    slots=4,
    end_ids=frozenset(),
    kv_bytes_per_token=1,
    grammars=frozenset({"choice", "regex", "json_schema"}),
)
WELL = STREAM + chunk("ok", "length") + usage(2, 2) + DONE


def status(code: int, body: bytes = b"", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
    return head.encode() + body


def replayed(*pieces: bytes | float) -> Recorded:
    """Answers a probe as it should, and everything else with what was recorded."""

    def answer(body: dict[str, Any]) -> Iterable[bytes | float]:
        return [WELL] if body["max_tokens"] == 1 else pieces

    return answer


def soon() -> float:
    return asyncio.get_running_loop().time() + PATIENCE_S


@asynccontextmanager
async def asking(*answers: Recorded | None, **settings: Any) -> AsyncIterator[tuple[RemoteGenerator, list[Server]]]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(answer)) for answer in answers]
        urls = [server.url for server in servers]
        patience = {"start_timeout_s": PATIENCE_S, "hang_s": PATIENCE_S, "retry_s": 0.05, **settings}
        generator = RemoteGenerator("letters", urls, facts=FACTS, settings=RemoteSettings(**patience))
        await generator.start()
        await until("every server", lambda: all(server.has_answered for server in generator._servers))
        try:
            yield generator, servers
        finally:
            await generator.close(0.0)


async def whole(generator: RemoteGenerator, request: Any = None) -> list[TokenEvent]:
    asked_for = asked("ab", new=8) if request is None else request
    return [event async for event in generator.generate(asked_for, deadline=soon())]


async def outcome(*pieces: bytes | float) -> list[TokenEvent] | PenstockError:
    """What a reader hears of a recorded answer."""
    async with asking(replayed(*pieces)) as (generator, _):
        try:
            return await whole(generator)
        except PenstockError as error:
            return error


def text(events: object) -> str:
    assert isinstance(events, list), events
    return "".join(event.text for event in events)


# -- streams as they were recorded ------------------------------------------------------------------------------------


async def test_a_whole_stream_is_its_tokens_and_its_usage() -> None:
    events = await outcome(STREAM, chunk("he"), chunk("l"), chunk("lo", "length"), usage(7, 5, cached=9), DONE)
    assert text(events) == "hello"
    assert isinstance(events, list)
    assert [event.token for event in events] == [ord(letter) for letter in "hello"], "chunks merge, tokens do not"
    assert [event.finish for event in events] == [None] * 4 + ["length"]
    assert events[0].logprob == -0.5
    told = events[-1].usage
    assert told is not None
    assert (told.prompt_tokens, told.completion_tokens, told.cached_tokens) == (7, 5, 7), "no more than there were"


async def test_a_server_that_tells_no_ids_no_logprobs_and_no_usage_is_understood() -> None:
    plain = [event({"choices": [{"index": 0, "text": word}]}) for word in ("hel", "lo")]
    end = event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    events = await outcome(STREAM, *plain, end, DONE)
    assert text(events) == "hello"
    assert isinstance(events, list)
    assert {event.token for event in events} == {NO_TOKEN}
    assert all(math.isnan(event.logprob) for event in events)
    assert events[-1].finish == "stop"
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 2


ABORTED = [STREAM, chunk("he"), chunk("", "abort"), usage(2, 2), DONE]
RANK_DEATH = [
    STREAM,
    chunk("he"),
    event({"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}),
    DONE,
]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (ABORTED, "abort"),
        (RANK_DEATH, "EngineCore"),
        ([STREAM, chunk("he"), DONE], "ended before the answer did"),
        ([STREAM, DONE], "ended before the answer did"),
        ([STREAM], "ended before the answer did"),
        ([STREAM, b"data: {nonsense\n\n"], "not JSON"),
        ([STREAM, event({"choices": [{"index": 0, "text": 5}]})], "no completion's"),
        ([STREAM, b"data: " + b"x" * 5_000_000], "event of more than"),
        ([], "cannot reach it"),
        ([STREAM[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", b"9\r\ndata"], "connection broke"),
        ([status(500, b'{"error": {"message": "broken", "code": 500}}')], "broken"),
        ([status(404, b'{"error": {"message": "no such model", "code": 404}}')], "no such model"),
        ([status(302)], "302"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error_that_names_the_server(pieces: list[bytes], words: str) -> None:
    error = await outcome(*pieces)
    assert isinstance(error, Unavailable), error
    assert words in error.message
    assert "http://127.0.0.1" in error.message
    assert error.retry_after_s is not None


async def test_a_stream_that_is_cut_at_any_byte_is_an_error_or_whole() -> None:
    stream = chunk("he") + chunk("llo", "stop") + usage(2, 5) + DONE
    finished = len(chunk("he") + chunk("llo", "stop"))
    seen: dict[bool, int] = {True: 0, False: 0}
    at = 0

    def answer(body: dict[str, Any]) -> Iterable[bytes]:
        return [WELL] if body["max_tokens"] == 1 else [STREAM, stream[:at]]

    async with asking(answer, failures=10**6) as (generator, _):
        for at in range(0, len(stream) + 1, 7):
            is_whole = at >= finished
            seen[is_whole] += 1
            if is_whole:
                assert text(await whole(generator)) == "hello"
            else:
                with pytest.raises(Unavailable):
                    await whole(generator)
    assert min(seen.values()) > 10


async def test_a_full_server_is_a_full_queue_and_says_when_to_come_back() -> None:
    error = await outcome(status(503, b'{"error": {"message": "too many", "type": "x", "code": 503}}'))
    assert isinstance(error, QueueFull)
    assert error.retry_after_s == 1.0, "vLLM says none"
    error = await outcome(status(429, b"slow down", "Retry-After: 7\r\n"))
    assert isinstance(error, QueueFull)
    assert error.retry_after_s == 7.0


async def test_a_request_that_a_server_finds_wrong_is_wrong() -> None:
    error = await outcome(status(400, b'{"error": {"message": "bad", "param": "stop", "code": 400}}'))
    assert isinstance(error, InvalidInput)
    assert error.field == "stop"
    assert error.message == "bad", "who asked us knows of no server behind us"


async def test_what_is_asked_is_what_was_meant() -> None:
    async with asking(replayed(WELL)) as (generator, servers):
        sampling = Sampling(temperature=0.5, top_k=3, seed=7, logit_bias={5: 1.5})
        grammar = Grammar(kind="choice", text='["yes","no"]')
        await whole(
            generator,
            asked("ab", new=9, stop=("x",), stop_ids=(3,), sampling=sampling, grammar=grammar, top_logprobs=2),
        )
    sent = servers[0].bodies[-1]
    assert sent["model"] == "letters"
    assert sent["prompt"] == [97, 98]
    assert (sent["max_tokens"], sent["temperature"], sent["top_k"], sent["seed"]) == (9, 0.5, 3, 7)
    assert sent["logit_bias"] == {"5": 1.5}
    assert (sent["stop"], sent["stop_token_ids"], sent["ignore_eos"]) == (["x"], [3], True)
    assert (sent["structured_outputs"], sent["logprobs"]) == ({"choice": ["yes", "no"]}, 2)
    plain = servers[0].bodies[0]
    assert not {"top_k", "min_p", "ignore_eos", "stop", "stop_token_ids", "structured_outputs"} & set(plain)
    assert json.dumps(plain)


async def test_alternatives_come_by_id() -> None:
    async with asking(replayed(STREAM, chunk("a", "length"), DONE)) as (generator, _):
        events = await whole(generator, asked(new=3, top_logprobs=2))
        assert events[0].top == ((97, -0.5), (98, -1.5))
        assert (await whole(generator, asked(new=3)))[0].top == ()


# -- several servers --------------------------------------------------------------------------------------------------


async def test_the_server_that_owes_the_fewest_tokens_is_asked() -> None:
    async with asking(None, None) as (generator, servers):
        streams = [generator.generate(asked(new=new), deadline=soon()) for new in (50_000, 1000, 1000, 1000)]
        for stream in streams:
            await anext(stream)
        asked_of = [[body["max_tokens"] for body in server.bodies[1:]] for server in servers]
        assert asked_of == [[50_000], [1000, 1000, 1000]]
        for stream in streams:
            await stream.aclose()


async def test_prompts_that_begin_alike_go_where_that_was_computed_as_far_as_it_saves_work() -> None:
    def answer(body: dict[str, Any]) -> Iterable[bytes | float]:
        return [STREAM, chunk("t"), 1000.0] if body["max_tokens"] == 2 else [WELL]

    async with asking(answer, answer, prefix_block_tokens=4) as (generator, servers):
        await whole(generator, asked("here we are"))
        busy = generator.generate(asked("there", new=2), deadline=soon())
        await anext(busy)  # the first one owes 7 tokens, and has 8 of these prompts
        for prompt in ("here we go", "other", "here we stay"):
            await whole(generator, asked(prompt))
        asked_of = [["".join(map(chr, body["prompt"])) for body in server.bodies[1:]] for server in servers]
        assert asked_of == [["here we are", "there", "here we go", "here we stay"], ["other"]]
        await busy.aclose()


async def test_an_idle_server_is_asked_for_a_sign_of_life_and_one_that_gives_none_is_left() -> None:
    is_hung = [False]

    def answer(body: dict[str, Any]) -> Iterable[bytes | float]:
        return [STREAM, 1000.0] if is_hung[0] else [WELL]

    async with asking(answer, idle_probe_s=0.05, hang_s=0.4) as (generator, servers):
        await until("probes", lambda: len(servers[0].bodies) > 3)
        assert generator.health().is_well
        is_hung[0] = True
        await until("found out", lambda: not generator.health().is_well)
        assert "no token within 0.4 s" in generator.health().why
        assert generator.counts().hangs == 1
        is_hung[0] = False
        await until("well again", lambda: generator.health().is_well)


async def test_what_one_server_does_not_begin_another_one_does() -> None:
    refused = status(503)
    async with asking(replayed(refused), replayed(), replayed(WELL)) as (generator, servers):
        assert text(await whole(generator)) == "ok"
        assert [len(server.bodies) for server in servers] == [2, 2, 2]


async def test_what_has_begun_is_not_begun_again() -> None:
    async with asking(replayed(*RANK_DEATH), replayed(WELL)) as (generator, servers):
        with pytest.raises(Unavailable):
            await whole(generator)
        assert len(servers[1].bodies) == 1


async def test_a_server_that_keeps_failing_is_left_alone_until_a_probe_succeeds() -> None:
    is_broken = [False]

    def answer(body: dict[str, Any]) -> Iterable[bytes]:
        return [] if is_broken[0] else [WELL]

    async with asking(answer, failures=2) as (generator, _):
        is_broken[0] = True
        for _ in range(2):
            with pytest.raises(Unavailable):
                await whole(generator)
        assert not generator.health().is_well
        assert "cannot reach it" in generator.health().why
        with pytest.raises(Unavailable, match="no server can be asked"):
            await whole(generator)
        is_broken[0] = False
        await until("well again", lambda: generator.health().is_well)
        assert text(await whole(generator)) == "ok"


async def test_a_server_that_owes_answers_and_sends_nothing_is_given_up() -> None:
    async with asking(replayed(STREAM, chunk("he"), 1000.0), replayed(WELL), hang_s=0.3) as (generator, servers):
        with pytest.raises(Unavailable, match=r"sent no token for 0\.3 s"):
            await whole(generator)
        await until("the connection's end", lambda: servers[0].closed == 1)
        assert generator.health().is_well, "the other one is"
        assert text(await whole(generator)) == "ok"


async def test_a_long_wait_while_others_get_tokens_is_no_hang() -> None:
    async with asking(None, hang_s=0.3) as (generator, _):
        others = [asyncio.create_task(whole(generator, asked(new=300))) for _ in range(4)]
        late = asyncio.create_task(whole(generator, asked("ok", new=2)))
        assert text(await late) == "ok"
        assert {len(answer) for answer in await asyncio.gather(*others)} == {300}


async def test_a_reader_that_goes_ends_the_generation_there() -> None:
    async with asking(None) as (generator, servers):
        async with aclosing(generator.generate(asked(new=90_000), deadline=soon())) as stream:
            await anext(stream)
        await until("the end of it", lambda: servers[0].engine.running == 0)
        assert servers[0].closed == 1
        assert generator.outstanding == 0


async def test_a_reader_that_does_not_read_ends_the_generation_there() -> None:
    async with (
        asking(None, max_unread_events=10) as (generator, servers),
        aclosing(generator.generate(asked(new=90_000), deadline=soon())) as stream,
    ):
        await anext(stream)
        await until("the end of it", lambda: servers[0].closed == 1 and servers[0].engine.running == 0)
        for _ in range(10):
            await anext(stream)
        with pytest.raises(Cancelled):
            await anext(stream)


async def test_without_a_token_nothing_is_ready() -> None:
    async with serving(lambda body: [status(200, b"{}")]) as server:
        generator = RemoteGenerator("letters", [server.url], facts=FACTS)
        with pytest.raises(Unavailable, match="no server made a token"):
            await generator.start()


async def test_a_server_that_still_loads_is_waited_for() -> None:
    refusals = [status(503), b""]
    async with serving(lambda body: [refusals.pop()] if refusals else [WELL]) as server:
        generator = RemoteGenerator("letters", [server.url], facts=FACTS, settings=RemoteSettings(retry_s=0.05))
        await generator.start(patience_s=PATIENCE_S)
        assert text(await whole(generator)) == "ok"
        await generator.close(0.0)


async def test_closing_leaves_no_reader_waiting() -> None:
    async with asking(None) as (generator, _):
        tasks = [asyncio.create_task(whole(generator, asked(new=90_000))) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await generator.close(0.0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3


@pytest.mark.parametrize(
    "url", ["", "host:80", "grpc://host:80/v1", "http://", "http://host:0", "http://u@host", "http://h/v1?a"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        RemoteGenerator("letters", [url] if url else [], facts=FACTS)


@pytest.mark.parametrize(
    ("url", "asked_at", "is_secure"),
    [
        ("http://host:8000", "http://host:8000/v1/completions", False),
        ("http://host:8000/", "http://host:8000/v1/completions", False),
        ("http://[::1]:8000/a/v2/", "http://[::1]:8000/a/v2/completions", False),
        ("https://host/v1", "https://host:443/v1/completions", True),
        ("http://host", "http://host:80/v1/completions", False),
        ("unix:///run/vllm.sock", "unix:///run/vllm.sock/v1/completions", False),
    ],
)
def test_where_a_server_is_follows_from_its_url(url: str, asked_at: str, is_secure: bool) -> None:
    found = parsed(url)
    assert (f"{found}{completions_path(found)}", found.is_secure) == (asked_at, is_secure)


async def test_a_server_over_tls_is_asked_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with serving(replayed(WELL), tls=context) as server:
        strange = RemoteGenerator("letters", [server.url], facts=FACTS)
        with pytest.raises(Unavailable, match="certificate"):
            await strange.start()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = RemoteGenerator("letters", [server.url], facts=FACTS)
        await trusted.start()
        assert text(await whole(trusted)) == "ok"
        await trusted.close(0.0)


def self_signed(directory: Path) -> Path:
    """A key and a certificate of the loopback address, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = directory / "both.pem"
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file
