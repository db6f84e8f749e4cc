"""A promise by a score of the prompt: what goes up costs no draft, and what stays is shown from its first token on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.hosting import Hosting
from edge_agent.serving.texts import TextPlane
from edge_agent.settings import CascadeSettings, EscalationSettings, LimitsSettings
from penstock.generation.plane import TextAnswer, TextRequest
from penstock.generation.values import TokenEvent
from penstock.hosting.generation.settings import GenerationSettings, RemoteSettings
from penstock.wire.context import RequestContext
from tests.edge_agent.datapath import text_plan
from tests.factories import certificate_for
from tests.language import ANSWER, EDGE, NAME, references, text_layout
from tests.penstock.hosting.generation.letters_server import DONE, STREAM, Server, chunk, serving

THRESHOLD = 0.3
PROMPTS = [tuple(row["ids"]) for row in references(EDGE)[:10]]


class Device:
    """One device with a language model that is certified by its prompts, and a cloud that says "c"."""

    def __init__(self, plane: TextPlane, cloud: Server) -> None:
        self.plane, self.cloud = plane, cloud

    async def ask(self, prompt: tuple[int, ...], **fields: Any) -> tuple[TextAnswer, list[TokenEvent]]:
        answer = await self.begin(prompt, **fields)
        return answer, [event async for event in answer.events]

    @property
    def made(self) -> int:
        """Tokens that the device's engine made."""
        (hosted,) = self.plane._plane.hosting.hosted()
        return hosted.texts.generator.counts().totals.completion_tokens

    async def begin(self, prompt: tuple[int, ...], **fields: Any) -> TextAnswer:
        request = TextRequest(model=NAME, prompt=prompt, **fields)
        context = RequestContext(arrived_at=asyncio.get_running_loop().time())
        with self.plane.admit(context, NAME, "", None) as ticket:
            return await self.plane.generate(ticket, context, request)

    @property
    def steps(self) -> int:
        (hosted,) = self.plane._plane.hosting.hosted()
        return hosted.texts.generator.counts().totals.completion_tokens


@asynccontextmanager
async def device(directory: Path, cascade: CascadeSettings) -> AsyncIterator[Device]:
    layout = text_layout(directory)
    promised = certificate_for(layout, score="prompt_max_prob", threshold=THRESHOLD, harm="disagreement", max_harm=0.1)
    hosting = Hosting(Outcomes(now=lambda: 0.0))
    plan = replace(text_plan(layout, directory), certificate=promised, certificate_digest="sha256:" + "f" * 64)
    hosting.activate(await hosting.prepare(plan))
    settings = EscalationSettings()
    async with serving(lambda body: [STREAM, chunk("c", "stop"), DONE]) as cloud:
        escalator = Escalator("grpc://127.0.0.1:9", settings)
        texts = CloudTexts(cloud.url, settings, RemoteSettings())
        plane = DataPlane(hosting, escalator, cascade, LimitsSettings())
        try:
            yield Device(
                TextPlane(plane, texts, cascade, GenerationSettings().limits, max_audits=100, random=lambda: 0.5), cloud
            )
        finally:
            await texts.close()
            await escalator.close()
            await hosting.close()


@pytest.fixture
async def unwatched(tmp_path: Path) -> AsyncIterator[Device]:
    async with device(tmp_path, CascadeSettings(audit_share=0.0)) as made:
        yield made


async def test_what_goes_up_was_never_drafted_and_what_stays_streams(unwatched: Device) -> None:
    served = set()
    for prompt in PROMPTS:
        made, lost, saved = unwatched.made, unwatched.plane.lost_tokens, unwatched.plane.saved_drafts
        answer = await unwatched.begin(prompt)
        first = await anext(answer.events)
        account = answer.account
        assert account["threshold"] == THRESHOLD
        assert account["certificate"]
        served.add(account["served_by"])
        if account["served_by"] == "edge":
            assert first.finish is None  # it is shown while the rest is made
            assert account["reason"] == "confident"
            assert account["confidence"] == pytest.approx(math.exp(first.logprob))
            assert account["confidence"] >= THRESHOLD
            rest = [event async for event in answer.events]
            assert rest[-1].finish == "stop" or len(rest) + 1 == ANSWER.max_new_tokens
        else:
            assert account["reason"] == "escalated_before_generation"
            assert account["confidence"] < THRESHOLD
            assert first.text == "c"
            assert unwatched.plane.saved_drafts == saved + 1
            assert unwatched.plane.lost_tokens == lost + 1  # the one that came with the prompt
            await answer.events.aclose()
            assert unwatched.made == made + 1  # and no step was made after it
    assert served == {"edge", "cloud"}


async def test_with_a_limit_of_ones_own_the_end_decides(unwatched: Device) -> None:
    sure = [prompt for prompt in PROMPTS if (await unwatched.ask(prompt))[0].account["served_by"] == "edge"]
    whole = {prompt: len((await unwatched.ask(prompt))[1]) for prompt in sure}
    prompt = max(sure, key=whole.__getitem__)
    answer, events = await unwatched.ask(prompt, max_new_tokens=whole[prompt] - 1)
    assert (answer.account["served_by"], answer.account["reason"]) == ("cloud", "escalated")  # it was cut
    assert [event.text for event in events] == ["c"]
    answer, events = await unwatched.ask(prompt, max_new_tokens=64)
    assert answer.account["served_by"] == ("edge" if events[-1].finish == "stop" else "cloud")


async def test_a_reader_who_leaves_stops_the_rest(unwatched: Device) -> None:
    for prompt in PROMPTS:
        answer = await unwatched.begin(prompt)
        await anext(answer.events)
        await answer.events.aclose()
    (hosted,) = unwatched.plane._plane.hosting.hosted()
    assert hosted.in_flight == 0
    assert hosted.texts.generator.outstanding == 0


async def test_drawn_answers_are_held_back_so_that_all_of_them_are_audited(tmp_path: Path) -> None:
    async with device(tmp_path, CascadeSettings(audit_share=1.0)) as watched:
        kept = 0
        for prompt in PROMPTS:
            answer = await watched.begin(prompt)
            await anext(answer.events)
            kept += answer.account["served_by"] == "edge"
            await answer.events.aclose()  # leaves after the first token
        assert kept
        assert len(watched.plane.auditor._queue) == kept
