"""The core answers texts: pushed, proved in a process of its own, asked through the plane."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_core.registry.registry import Registry
from cloud_core.serving.texts import TextPlane
from cloud_core.settings import ServingSettings
from cloud_core.tenants.settings import TenantSettings
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import InvalidInput, QuotaExceeded, Unavailable
from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.generation.choices import grammar_of
from penstock.generation.plane import Chat, TextAnswer, TextRequest
from penstock.generation.values import Sampling, TokenEvent
from penstock.hosting.generation import text_model
from penstock.hosting.generation.settings import GenerationSettings, RemoteSettings, TextLimits
from penstock.policy.choices import choice_score
from penstock.process.telemetry import LogSettings
from penstock.runtime.generation import GenerationOptions, load
from tests.cloud_core.rig import Rig, Told, rig_of, soon
from tests.language import (
    ANSWER,
    CLOUD,
    EDGE,
    MODELS,
    NAME,
    golden_of,
    layout_without_engine,
    references,
    text_draft,
    text_layout,
)
from tests.penstock.hosting.generation.letters_server import serving
from tests.penstock.hosting.generation.managed import stand_in_model as stand_in
from tests.penstock.hosting.rig import rows

Put = Callable[..., Any]


@pytest.fixture
async def rig(registry: Registry) -> AsyncIterator[Rig]:
    made = rig_of(registry, ServingSettings())
    yield made
    await made.controller.close(0.0)


async def ask(rig: Rig, request: TextRequest) -> tuple[TextAnswer, list[TokenEvent]]:
    plane = TextPlane(rig.plane, ServingSettings())
    with plane.admit(rig.context(), request.model, request.version, 100) as ticket:
        answer = await plane.generate(ticket, rig.context(), request)
        return answer, [event async for event in answer.events]


async def test_a_pushed_model_answers_as_the_engine_that_built_it_does(rig: Rig, put: Put, tmp_path: Path) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    assert [state.state for state in rig.controller.index()] == ["READY"]
    rig.plane.observers.add(told := Told())
    row = max(references(CLOUD), key=lambda one: min(one["margins"][:4]))
    prompt = tuple(row["ids"])
    answer, events = await ask(rig, TextRequest(model=NAME, prompt=prompt, max_new_tokens=4, stop=()))
    assert [event.token for event in events] == row["new"][:4]
    last = events[-1]
    assert last.finish == "length"
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 4)
    assert answer.account["served_by"] == "cloud"
    assert answer.prompt_ids == prompt
    assert [(one.code, one.model, one.prompt_tokens, one.answer_tokens) for one in told.requests] == [
        ("ok", NAME, len(prompt), 4)
    ]


async def test_an_open_request_is_answered_as_certified(rig: Rig, put: Put, tmp_path: Path) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    answer, events = await ask(rig, TextRequest(model=NAME, prompt="import os\nimport "))
    assert 0 < len(events) <= 16
    assert "\n" not in "".join(event.text for event in events)
    _, same = await ask(rig, TextRequest(model=NAME, prompt=tuple(answer.prompt_ids)))
    assert [event.token for event in same] == [event.token for event in events]


async def test_a_model_that_servers_of_others_run_is_proved_there_and_answers_from_there(
    registry: Registry, put: Put, tmp_path: Path
) -> None:
    pieces = tokenizer.load(text_model.read_files(MODELS / CLOUD)).pieces
    engine = load("onnxruntime", MODELS / CLOUD, GenerationOptions())
    async with serving(engine=engine, text=lambda request: AnswerText(request, pieces)) as server:
        remote = RemoteSettings(urls={NAME: (server.url,)})
        rig = rig_of(registry, ServingSettings(generation=GenerationSettings(remote=remote)))
        await put(rig.registry, text_layout(tmp_path))
        await rig.settle()
        assert [state.state for state in rig.controller.index()] == ["READY"]
        row = max(references(CLOUD), key=lambda one: min(one["margins"][:4]))
        request = TextRequest(model=NAME, prompt=tuple(row["ids"]), max_new_tokens=4, stop=())
        _, events = await ask(rig, request)
        assert [event.token for event in events] == row["new"][:4]
        assert [len(body["prompt"]) for body in server.bodies[-1:]] == [len(row["ids"])]
        (served,) = rig.plane.served_texts()
        counts = served.model.generator.counts()
        assert (counts.totals.ended, counts.load.running) == (len(server.bodies) - 1, 0), "all but the probe"
        await rig.controller.close(0.0)
    engine.close()


async def test_a_server_that_runs_another_model_is_not_used(registry: Registry, put: Put, tmp_path: Path) -> None:
    async with serving() as server:  # answers each prompt with itself
        remote = RemoteSettings(urls={NAME: (server.url,)})
        rig = rig_of(registry, ServingSettings(generation=GenerationSettings(remote=remote)))
        await put(rig.registry, text_layout(tmp_path))
        await rig.settle()
        (state,) = rig.controller.index()
        assert state.state == "UNAVAILABLE"
        assert "golden prompt 0" in state.reason
        await rig.controller.close(0.0)


async def test_a_model_that_a_server_of_ours_runs_is_proved_there_and_answers_from_there(
    registry: Registry, put: Put, tmp_path: Path
) -> None:
    of = stand_in.settings(tmp_path)
    answers = [[row["ids"], row["new"]] for row in references(CLOUD)]
    (Path(of.directory) / "answers.json").write_text(json.dumps(answers))
    rig = rig_of(registry, managed=replace(stand_in.servers(tmp_path, of), settings={NAME: of}))
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    assert [state.state for state in rig.controller.index()] == ["READY"]
    row = references(CLOUD)[0]
    request = TextRequest(model=NAME, prompt=tuple(row["ids"]), max_new_tokens=4, stop=())
    answer, events = await ask(rig, request)
    assert [event.token for event in events] == row["new"][:4]
    assert answer.account["served_by"] == "cloud"
    await rig.controller.close(0.0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ()}, "no tokens"),
    ({"prompt": (1, 99999)}, "vocabulary"),
    ({"prompt": "x", "max_new_tokens": 100_000}, "room for 512"),
    ({"prompt": (1,) * 600}, "600 tokens"),
    ({"prompt": Chat(messages=({"role": "user", "content": "hi"},))}, "chat template"),
    ({"prompt": "\ud800"}, "surrogate"),
]


async def test_what_cannot_be_answered_is_refused_in_words(rig: Rig, put: Put, tmp_path: Path) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    for changes, message in REFUSED:
        with pytest.raises(InvalidInput, match=message):
            await ask(rig, TextRequest(**{"model": NAME, **changes}))
        assert rig.measures.inflight == 0
    with pytest.raises(InvalidInput, match="/v1/chat/completions"):  # and rows of numbers
        await rig.infer(rows(1), model=NAME)


async def test_a_model_that_continues_otherwise_than_when_it_was_compiled_is_not_served(
    rig: Rig, put: Put, tmp_path: Path
) -> None:
    draft = text_draft("cloud", CLOUD)
    layout = Layout.create(tmp_path / "wrong")
    wrong = VariantDraft(spec=draft.spec, weights=draft.weights, golden=golden_of(CLOUD, shift=1), files=draft.files)
    layout.pack([wrong], tag="v1")
    await put(rig.registry, layout)
    await rig.settle()
    (state,) = rig.controller.index()
    assert state.state == "UNAVAILABLE"
    assert "golden prompt 0" in state.reason


async def test_answers_that_have_not_begun_are_given_before_a_model_goes(rig: Rig, put: Put, tmp_path: Path) -> None:
    """A request for many answers has some made at a time; when it was admitted before the unload, it gets them all."""
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    plane = TextPlane(rig.plane, ServingSettings())
    request = TextRequest(model=NAME, prompt=(1, 2, 3), max_new_tokens=4, stop=())
    with plane.admit(rig.context(), NAME, "", 100) as ticket:
        answers = [await plane.generate(ticket, rig.context(), request) for _ in range(10)]
        (served,) = rig.plane.served_texts()
        closing = asyncio.create_task(rig.controller.close(30.0))
        for answer in answers:
            assert [event async for event in answer.events][-1].finish == "length"
            await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(Unavailable):
            plane.admit(rig.context(), NAME, "", 100)
    assert await closing
    assert "closed" in served.problem


async def test_a_crash_costs_its_own_generations_and_the_next_is_answered(rig: Rig, put: Put, tmp_path: Path) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    (served,) = rig.plane.served_texts()
    plane = TextPlane(rig.plane, ServingSettings())
    request = TextRequest(model=NAME, prompt=(1, 2, 3), max_new_tokens=400, stop=())
    with plane.admit(rig.context(), NAME, "", 100) as ticket:
        answer = await plane.generate(ticket, rig.context(), request)
        await anext(answer.events)
        pid = served.model.generator.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="started again"):
            async for _ in answer.events:
                pass
    assert rig.plane.is_live
    await soon(lambda: not served.problem)
    _, events = await ask(rig, TextRequest(model=NAME, prompt=(1, 2, 3), max_new_tokens=2, stop=()))
    assert len(events) == 2


async def test_unloading_ends_the_process(rig: Rig, put: Put, tmp_path: Path) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    (served,) = rig.plane.served_texts()
    pid = served.model.generator.pid
    assert pid is not None
    await rig.controller.close(0.0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_tenant_pays_for_what_was_made_also_when_its_client_goes_away(
    rig: Rig, put: Put, tmp_path: Path
) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    tenant = TenantSettings(name="acme", token="a-long-token", tokens_per_day=60)
    plane = TextPlane(rig.plane, ServingSettings(), [tenant])
    context = msgspec.structs.replace(rig.context(), tenant="acme")
    request = TextRequest(model=NAME, prompt=(1,) * 10, max_new_tokens=50, stop=())
    with plane.admit(context, NAME, "", 100) as ticket:
        answer = await plane.generate(ticket, context, request)
        await anext(answer.events)
        await anext(answer.events)
        with pytest.raises(QuotaExceeded, match="0 of 60 a day are left"):  # all of it is set aside meanwhile
            await anext((await plane.generate(ticket, context, request)).events)
        await answer.events.aclose()
        assert plane.accounts.tokens == {"acme": 12}
        never_read = await plane.generate(ticket, context, request)
        await never_read.events.aclose()
        short = TextRequest(model=NAME, prompt=(1,) * 10, max_new_tokens=38, stop=())
        assert len([event async for event in (await plane.generate(ticket, context, short)).events]) == 38
        assert plane.accounts.tokens == {"acme": 60}


async def test_choosing_costs_a_tenant_the_tokens_of_every_option(rig: Rig, put: Put, tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "choices")
    answer = msgspec.structs.replace(ANSWER, choices=("aa", "bb", "cc"))
    layout.pack([text_draft("edge", EDGE, answer=answer), text_draft("cloud", CLOUD, answer=answer)], tag="v1")
    await put(rig.registry, layout)
    await rig.settle()
    tenant = TenantSettings(name="acme", token="a-long-token", tokens_per_day=60)
    plane = TextPlane(rig.plane, ServingSettings(), [tenant])
    context = msgspec.structs.replace(rig.context(), tenant="acme")
    request = TextRequest(model=NAME, prompt=(1,) * 10)
    with plane.admit(context, NAME, "", 100) as ticket:
        chosen = await plane.generate(ticket, context, request)
        events = [event async for event in chosen.events]
        many = msgspec.structs.replace(request, grammar=grammar_of([f"{at}{at}" for at in range(40)]))
        with pytest.raises(InvalidInput, match="147 tokens asked for .* this credential has 60 a day"):
            await anext((await plane.generate(ticket, context, many)).events)
    assert "".join(event.text for event in events) in ("aa", "bb", "cc")
    assert chosen.account["confidence"] == choice_score(events[-1].options, name="max_prob")
    pieces = tokenizer.load(text_model.read_files(MODELS / CLOUD))
    options = sum(len(pieces.encode(text, add_special_tokens=False)) for text in ("aa", "bb", "cc"))
    assert plane.accounts.tokens == {"acme": 10 + options + 1}


async def test_the_same_question_is_answered_from_memory_where_that_is_wished(
    rig: Rig, put: Put, tmp_path: Path
) -> None:
    await put(rig.registry, text_layout(tmp_path))
    await rig.settle()
    (served,) = rig.plane.served_texts()
    generation = GenerationSettings(limits=TextLimits(cache_bytes=2**20))
    plane = TextPlane(rig.plane, ServingSettings(generation=generation))

    async def said(request: TextRequest, tenant: str = "") -> tuple[list[int], int]:
        context = msgspec.structs.replace(rig.context(), tenant=tenant)
        with plane.admit(context, NAME, "", 100) as ticket:
            events = [event async for event in (await plane.generate(ticket, context, request)).events]
        return [event.token for event in events], served.model.generator.counts().totals.ended

    greedy = TextRequest(model=NAME, prompt=(1, 2, 3), max_new_tokens=4, stop=())
    tokens, ended = await said(greedy)
    assert await said(greedy) == (tokens, ended)
    assert (await said(greedy, tenant="acme"))[1] == ended + 1
    sampled = TextRequest(model=NAME, prompt=(1, 2, 3), max_new_tokens=4, stop=(), sampling=Sampling(temperature=1.0))
    assert (await said(sampled))[1] == ended + 2
    assert (await said(sampled))[1] == ended + 3


async def test_the_process_of_a_model_logs_as_the_core_does(
    registry: Registry, put: Put, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = rig_of(registry, log_settings=LogSettings(format="json"))
    await put(registry, layout_without_engine(tmp_path))
    await rig.settle()
    assert [state.state for state in rig.controller.index()] == ["UNAVAILABLE"]
    await rig.controller.close(0.0)
    lines = [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines() if "model not loaded" in line]
    assert [line["engine"] for line in lines] == ["genai"]
