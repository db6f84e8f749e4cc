"""Vectors of texts in a core: who may ask and how much, and models that give none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud_core.app import Core
from cloud_core.serving.embeddings import Embeddings
from cloud_core.settings import ServingSettings
from penstock.generation.plane import Embedded, EmbeddingRequest
from penstock.registry.client import RegistryClient
from penstock.registry.transfer import push
from penstock.wire.context import RequestContext
from tests import encoder
from tests.cloud_core.rig import soon, start_core

openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")

TENANTS = [
    {"name": "team", "token": "token-of-team"},
    {"name": "free", "token": "token-of-free", "rate_rows_per_s": 0.001, "burst_rows": 2.0},
]


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    started = await start_core(tmp_path, tenants=TENANTS, serving={"max_delay_s": 0.1})

    def send() -> None:
        with RegistryClient(f"http://127.0.0.1:{started.http_port}", token="token-of-team") as client:
            push(client, encoder.layout(tmp_path))

    async with started:
        await asyncio.to_thread(send)
        await soon(lambda: started.plane.model_state(encoder.NAME).state == "READY")
        yield started


def client_of(core: Core, token: str = "token-of-team") -> Any:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{core.http_port}/v1", api_key=token, max_retries=0)


async def test_tenants_are_known_and_limited_as_for_arrays(core: Core) -> None:
    async with client_of(core, "nobody's token") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.embeddings.create(model=encoder.NAME, input="a")
    async with client_of(core, "token-of-free") as client:
        await client.embeddings.create(model=encoder.NAME, input=["a", "dog"])
        with pytest.raises(openai.RateLimitError) as limited:
            await client.embeddings.create(model=encoder.NAME, input="a")
        assert int(limited.value.response.headers["retry-after"]) > 0
    async with client_of(core) as client:
        answer = await client.embeddings.create(model=encoder.NAME, input=["a", "dog", "mat"])
        assert len(answer.data) == 3
    assert core.plane.measures.inflight == 0


async def test_texts_of_several_requests_run_together(core: Core) -> None:
    embeddings = Embeddings(core.plane, ServingSettings())
    texts = [("the dog",), ("a mat by night", "river")] * 4

    async def ask(inputs: tuple[str, ...]) -> Embedded:
        context = RequestContext(arrived_at=asyncio.get_running_loop().time(), tenant="team")
        with core.plane.admit(context, encoder.NAME, "", 100) as ticket:
            request = EmbeddingRequest(model=encoder.NAME, inputs=inputs)
            return await embeddings.embed(ticket, context, request)

    answers = await asyncio.gather(*map(ask, texts))
    assert [len(answer.vectors) for answer in answers] == [1, 2] * 4
    (served,) = [one for one in core.plane.served() if one.embedding is not None]
    batches = core.plane.measures.batch(encoder.NAME, served.variant.digest)
    assert batches.rows.total == 12
    assert sum(batches.rows.counts) < len(texts)


async def test_a_model_that_gives_no_vectors_of_texts_says_what_to_do(core: Core) -> None:
    async with client_of(core) as client:
        with pytest.raises(openai.BadRequestError, match="'mlp' declares no texts; compile a sentence encoder") as none:
            await client.embeddings.create(model="mlp", input="a")
        assert none.value.param == "model"
