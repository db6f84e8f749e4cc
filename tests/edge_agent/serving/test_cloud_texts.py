"""Texts go up by token ids only where these mean the same to both models."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.hosting import Hosted, Hosting
from edge_agent.serving.texts import TextPlane
from edge_agent.settings import CascadeSettings, EscalationSettings, LimitsSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import shares_file
from penstock.errors import DeadlineExceeded, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.settings import GenerationSettings, RemoteSettings
from tests.edge_agent.datapath import text_plan
from tests.language import CLOUD, EDGE, text_draft, text_layout
from tests.penstock.hosting.generation.letters_server import DONE, STREAM, chunk, serving
from tests.waiting import until

FILE = "tokenizer.json"
REQUEST = GenerationRequest(id="r", prompt_ids=(1, 2), max_new_tokens=2)


def with_other_tokenizer(directory: Path) -> Layout:
    other = directory / FILE
    other.write_bytes((text_draft("cloud", CLOUD).files[FILE]).read_bytes() + b"\n")
    edge, cloud = text_draft("edge", EDGE), text_draft("cloud", CLOUD)
    cloud = VariantDraft(
        spec=cloud.spec, weights=cloud.weights, golden=cloud.golden, files={**cloud.files, FILE: other}
    )
    layout = Layout.create(directory / "layout")
    layout.pack([edge, cloud], tag="v1")
    return layout


def test_the_very_same_file_is_the_same_tokenizer(tmp_path: Path) -> None:
    alike, apart = text_layout(tmp_path).artifact(), with_other_tokenizer(tmp_path).artifact()
    assert shares_file(alike, alike.variant("edge"), FILE)
    assert not shares_file(apart, apart.variant("edge"), FILE)
    assert shares_file(apart, apart.variant("edge"), "nothing has this")


@asynccontextmanager
async def models_from(layout: Layout, directory: Path) -> AsyncIterator[tuple[Hosting, Hosted]]:
    hosting = Hosting(Outcomes(now=lambda: 0.0))
    hosted = await hosting.prepare(text_plan(layout, directory))
    hosting.activate(hosted)
    try:
        yield hosting, hosted
    finally:
        await hosting.close()


@asynccontextmanager
async def hosted_from(layout: Layout, directory: Path) -> AsyncIterator[Hosted]:
    async with models_from(layout, directory) as (_, hosted):
        yield hosted


def only_the_probe(body: dict[str, Any]) -> Iterable[bytes | float]:
    """The first token that a server is asked for comes; no other does."""
    return [STREAM, chunk("a", "length"), DONE] if body["max_tokens"] == 1 else [3600.0]


async def test_ids_that_mean_other_text_never_go_up(tmp_path: Path) -> None:
    async with hosted_from(with_other_tokenizer(tmp_path), tmp_path) as hosted:
        cloud = CloudTexts("http://127.0.0.1:9", EscalationSettings(), RemoteSettings())
        try:
            with pytest.raises(Unavailable, match="another tokenizer"):
                await cloud.of(hosted).begin(REQUEST, deadline=float("inf"))
        finally:
            await cloud.close()


async def test_only_those_who_waited_say_that_the_cloud_is_slow(tmp_path: Path) -> None:
    """Who gives the cloud a hundredth of a second does not take it from those who have more."""
    loop = asyncio.get_running_loop()
    patient = EscalationSettings(breaker_failures=2, first_token_timeout_s=60.0)
    impatient = EscalationSettings(breaker_failures=2, first_token_timeout_s=0.01)
    async with serving(only_the_probe) as server, hosted_from(text_layout(tmp_path), tmp_path) as hosted:
        for settings, is_reachable in ((patient, True), (impatient, False)):
            cloud = CloudTexts(server.url, settings, RemoteSettings())
            way = cloud.of(hosted)
            try:
                for _ in range(settings.breaker_failures):
                    with pytest.raises(DeadlineExceeded):
                        await way.begin(REQUEST, deadline=loop.time() + 0.01)
                assert way.is_reachable == is_reachable
            finally:
                await cloud.close()


async def said(events: AsyncIterator[TokenEvent]) -> str:
    return "".join([event.text async for event in events])


async def test_the_way_of_a_retired_model_is_closed_though_nothing_is_audited(tmp_path: Path) -> None:
    settings, limits = EscalationSettings(), GenerationSettings().limits
    async with serving() as server, models_from(text_layout(tmp_path), tmp_path) as (hosting, hosted):
        escalator = Escalator("grpc://127.0.0.1:9", settings)
        cloud = CloudTexts(server.url, settings, RemoteSettings())
        plane = DataPlane(hosting, escalator, CascadeSettings(), LimitsSettings())
        TextPlane(plane, cloud, CascadeSettings(), limits, max_audits=1)
        try:
            await said(await cloud.begin(hosted, REQUEST, deadline=math.inf))
            assert "closed" in repr(cloud)
            await hosting.retire(hosted)
            assert repr(cloud) == "CloudTexts([])"
        finally:
            await cloud.close()
            await escalator.close()


async def test_an_answer_that_comes_from_the_cloud_outlives_its_model(tmp_path: Path) -> None:
    """An update waits some seconds for answers that are under way; what takes longer is not cut by the next one."""

    def slowly(body: dict[str, Any]) -> Iterable[bytes | float]:
        rest = [0.1, chunk("b", "length")] if body["max_tokens"] == 2 else [chunk("", "length")]
        return [STREAM, chunk("a"), *rest, DONE]

    async with serving(slowly) as server, hosted_from(text_layout(tmp_path), tmp_path) as hosted:
        cloud = CloudTexts(server.url, EscalationSettings(), RemoteSettings())
        try:
            events = await cloud.begin(hosted, REQUEST, deadline=math.inf)
            hosted.is_retired = True
            await cloud.forget_retired()
            assert await said(events) == "ab"
            await cloud.forget_retired()
            assert repr(cloud) == "CloudTexts([])"
        finally:
            await cloud.close()


async def test_a_way_that_is_closed_while_it_opens_stays_closed(tmp_path: Path) -> None:
    def late(body: dict[str, Any]) -> Iterable[bytes | float]:
        return [STREAM, 0.1, chunk("a", "length"), DONE]

    async with serving(late) as server, hosted_from(text_layout(tmp_path), tmp_path) as hosted:
        cloud = CloudTexts(server.url, EscalationSettings(), RemoteSettings())
        asked = asyncio.create_task(cloud.begin(hosted, REQUEST, deadline=math.inf))
        await until("the cloud is asked for its first token", lambda: server.bodies)
        await cloud.close()
        with pytest.raises(Unavailable, match="no more"):
            await asked
        with pytest.raises(Unavailable, match="no more"):
            await cloud.begin(hosted, REQUEST, deadline=math.inf)
        assert [body["max_tokens"] for body in server.bodies] == [1]
