"""The SDK asks a real core for texts over gRPC as it does over HTTP: the same answers, errors, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cloud_core.app import Core
from penstock import AsyncClient, Client
from penstock.artifact.layout import Layout
from penstock.errors import DeadlineExceeded, InvalidInput, NotFound, PenstockError, Unavailable
from penstock.registry.client import RegistryClient
from penstock.registry.transfer import push
from tests.cloud_core.rig import core_settings, soon
from tests.language import CLOUD, NAME, text_draft

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
PROMPT = "import os\nimport "
LONG: dict[str, Any] = {"max_new_tokens": 400, "stop": []}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Core]:
    root = tmp_path_factory.mktemp("core")

    def send(url: str) -> None:
        (root / "chat_template.jinja").write_text(TEMPLATE)
        draft = text_draft("cloud", CLOUD)
        layout = Layout.create(root / "layout")
        files = {**draft.files, "chat_template.jinja": root / "chat_template.jinja"}
        layout.pack([replace(draft, files=files)], tag="v1")
        with RegistryClient(url) as client:
            push(client, layout)

    async with await Core.start(core_settings(root / "core")) as running:
        await asyncio.to_thread(send, f"http://127.0.0.1:{running.http_port}")
        await soon(lambda: running.plane.model_state(NAME).state == "READY")
        yield running


def targets(core: Core) -> tuple[str, str]:
    return f"grpc://127.0.0.1:{core.grpc_port}", f"http://127.0.0.1:{core.http_port}"


def said(text: Any) -> dict[str, Any]:
    """What an answer says, but for what depends on who asked before."""
    found = {name: getattr(text, name) for name in text.__slots__ if name not in ("id", "stop_reason", "version")}
    found["logprobs"] = [round(logprob, 4) for logprob in text.logprobs]  # tensors of them are FP32
    return found | {"usage": (text.usage.prompt_tokens, text.usage.completion_tokens)}


ASKED: dict[str, Callable[[Client], Any]] = {
    "text": lambda client: client.generate(NAME, PROMPT, max_new_tokens=6),
    "ids": lambda client: client.generate(NAME, [10, 20, 30], stop=[], max_new_tokens=4, logprobs=0),
    "seeded": lambda client: client.generate(NAME, PROMPT, temperature=1.0, seed=5, top_k=9, max_new_tokens=6),
    "version": lambda client: client.generate(NAME, PROMPT, version="v1", priority=1, request_id="r1"),
    "chat": lambda client: client.chat(NAME, [{"role": "user", "content": PROMPT}], max_new_tokens=6),
    "choices": lambda client: client.generate(NAME, PROMPT, choices=["sys", "os"]),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_an_answer_is_the_same_over_both(core: Core, asked: str) -> None:
    def ask(target: str) -> Any:
        with Client(target) as client:
            return ASKED[asked](client)

    by_grpc, by_http = [await asyncio.to_thread(ask, target) for target in targets(core)]
    assert said(by_grpc) == said(by_http)
    assert by_grpc.served_by == "cloud"
    assert by_grpc.usage.completion_tokens == len(by_grpc.token_ids)


async def test_parts_are_the_same_for_both_clients(core: Core) -> None:
    def parts_of(target: str) -> list[Any]:
        with Client(target) as client, client.stream(NAME, PROMPT, max_new_tokens=6) as parts:
            return [*parts, said(parts.answer)]

    first, second = [await asyncio.to_thread(parts_of, target) for target in targets(core)]
    assert first[-1] == second[-1]
    async with AsyncClient(targets(core)[0]) as client:
        stream = client.stream(NAME, [{"role": "user", "content": PROMPT}], max_new_tokens=6)
        parts = [part async for part in stream]
        whole = await client.generate(NAME, PROMPT, max_new_tokens=6)
    assert [part.token_ids for part in parts] == [part.token_ids for part in first[:-1]]
    assert stream.answer.text == whole.text == "".join(part.text for part in parts)


WRONG: list[tuple[Callable[[Client], Any], type[PenstockError], str]] = [
    (lambda client: client.generate("nobody", "x"), NotFound, "nobody"),
    (lambda client: client.generate(NAME, ""), InvalidInput, "empty"),
    (lambda client: client.generate(NAME, [1, 99999]), InvalidInput, "99999"),
    (lambda client: client.generate(NAME, "x", max_new_tokens=10**6), InvalidInput, "together"),
    (lambda client: client.chat(NAME, [{"role": "king", "content": "x"}]), InvalidInput, "king"),
    (lambda client: client.generate(NAME, "x", temperature=-1.0), InvalidInput, "temperature"),
]


@pytest.mark.parametrize("place", range(len(WRONG)))
async def test_what_is_wrong_is_the_same_error_whole_and_in_parts(core: Core, place: int) -> None:
    ask, kind, words = WRONG[place]

    def told(target: str, in_parts: bool) -> PenstockError:
        with Client(target, retries=0) as client:
            if in_parts:
                for name in ("generate", "chat"):
                    setattr(client, name, lambda *given, **more: list(client.stream(*given, **more)))
            with pytest.raises(kind, match=words) as wrong:
                ask(client)
            return wrong.value

    for target in targets(core):
        for in_parts in (False, True):
            error = await asyncio.to_thread(told, target, in_parts)
            assert not isinstance(error, InvalidInput) or error.field


async def test_alternatives_of_tokens_are_for_http(core: Core) -> None:
    async with AsyncClient(targets(core)[0]) as client:
        with pytest.raises(InvalidInput, match="over http:// only"):
            await client.generate(NAME, PROMPT, logprobs=3)


async def test_whoever_leaves_stops_the_server(core: Core) -> None:
    (served,) = core.plane.served_texts()
    generator = served.model.generator

    def leave() -> None:
        with Client(targets(core)[0]) as client, client.stream(NAME, PROMPT, **LONG) as parts:
            next(parts)

    await asyncio.to_thread(leave)
    await soon(lambda: generator.counts().load.running == 0 and core.plane.measures.inflight == 0)
    async with AsyncClient(targets(core)[0]) as client, client.stream(NAME, PROMPT, **LONG) as stream:
        await anext(stream)
    await soon(lambda: generator.counts().load.running == 0 and core.plane.measures.inflight == 0)


async def test_a_deadline_ends_a_text_and_a_server_that_is_gone_says_so(core: Core, tmp_path: Path) -> None:
    async with AsyncClient(targets(core)[0], retries=0) as client:
        with pytest.raises(DeadlineExceeded):
            async for _ in client.stream(NAME, PROMPT, timeout=0.02, **LONG):
                pass
    async with AsyncClient("grpc://127.0.0.1:9", retries=0) as client:
        with pytest.raises(Unavailable):
            await anext(client.stream(NAME, PROMPT))
    await soon(lambda: core.plane.measures.inflight == 0)
