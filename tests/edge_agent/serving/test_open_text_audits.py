"""The audit of a promise about somebody's opinion: by the very function that the certificate names, or not made."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.grader import grader_for
from edge_agent.serving.hosting import Hosted, Hosting
from edge_agent.serving.load_plan import usable_certificate
from edge_agent.serving.texts import TextPlane
from edge_agent.settings import CascadeSettings, EscalationSettings, LimitsSettings
from penstock.artifact.certificates import Opinion
from penstock.generation.plane import TextRequest
from penstock.hosting.generation.settings import GenerationSettings, RemoteSettings
from penstock.hosting.generation.text_metric import TextMetric
from penstock.policy.change_detection import FRESH, Evidence, updated_by_share
from penstock.wire.context import RequestContext
from tests.edge_agent import datapath
from tests.edge_agent.datapath import text_plan
from tests.factories import certificate_for
from tests.language import EDGE, NAME, references, text_layout
from tests.penstock.hosting.generation.letters_server import DONE, STREAM, chunk, serving

BOUND = 0.1
IDS = tuple(references(EDGE)[0]["ids"])
GRADE = """
import json
def grade(prompt, answer, reference):
    with open({asked!r}, "a") as file:
        file.write(json.dumps([prompt, answer, reference]) + "\\n")
    return {given}
"""


class Device:
    """A device that keeps every answer and audits each, with a cloud that always says "c"."""

    def __init__(self, plane: TextPlane, hosted: Hosted, asked: Path) -> None:
        self.plane, self.hosted, self._asked = plane, hosted, asked

    async def answer(self, prompt: str | tuple[int, ...] = IDS) -> str:
        """Ask, and wait until the audit was made."""
        context = RequestContext(arrived_at=asyncio.get_running_loop().time())
        with self.plane.admit(context, NAME, "", None) as ticket:
            answer = await self.plane.generate(ticket, context, TextRequest(model=NAME, prompt=prompt))
            text = "".join([event.text async for event in answer.events])
        await self.plane.auditor.rest()
        return text

    @property
    def evidence(self) -> Evidence:
        assert self.hosted.audit is not None
        return self.hosted.audit.evidence

    def asked(self) -> list[list[str]]:
        """What the metric was asked: prompt, answer, reference."""
        return [json.loads(line) for line in self._asked.read_text().splitlines()] if self._asked.exists() else []


Make = Callable[..., AbstractAsyncContextManager[Device]]


@pytest.fixture
def device(tmp_path: Path) -> Make:
    @asynccontextmanager
    async def made(
        given: str,
        *,
        named: str | None = None,
        certified: str | None = None,
        random: float = 0.0,
        timeout_s: float = 60.0,
    ) -> AsyncIterator[Device]:
        """``given`` is what the metric returns; ``named`` and ``certified`` the function here and the certificate's."""
        asked = str(tmp_path / "asked")
        (tmp_path / "score.py").write_text(GRADE.format(asked=asked, given=given.format(asked=asked)))
        opinion = TextMetric.load("score.py:grade", tmp_path, setting="test").opinion
        layout = text_layout(tmp_path)
        promised = certificate_for(
            layout, score="token_min", threshold=0.0, harm="disagreement", max_harm=BOUND, audit_max_harm=BOUND,
            opinion=opinion, test="betting",
        )  # fmt: skip
        here = str(tmp_path / "score.py") + ":grade" if named is None else named
        hosting = Hosting(Outcomes(now=lambda: 0.0), run_length=1000.0, metric_of={NAME: here}.__getitem__)
        plan = replace(text_plan(layout, tmp_path), certificate=promised, certificate_digest="sha256:" + "f" * 64)
        hosted = await hosting.prepare(plan)
        hosting.activate(hosted)
        settings, cascade = EscalationSettings(), CascadeSettings(audit_share=1.0)
        limits = GenerationSettings().limits
        async with serving(lambda body: [STREAM, chunk("c", "stop"), DONE]) as cloud:
            escalator = Escalator("grpc://127.0.0.1:9", settings)
            texts = CloudTexts(cloud.url, settings, RemoteSettings())
            plane = TextPlane(
                DataPlane(hosting, escalator, cascade, LimitsSettings()),
                texts, cascade, limits, max_audits=100, random=lambda: random,
            )  # fmt: skip
            plane.auditor._timeout_s = timeout_s
            auditing = asyncio.create_task(plane.auditor.run())
            try:
                yield Device(plane, hosted, tmp_path / "asked")
            finally:
                auditing.cancel()
                await asyncio.gather(auditing, return_exceptions=True)
                await texts.close()
                await escalator.close()
                await hosting.close()

    return made


async def test_what_a_kept_answer_lacks_by_the_clouds_is_evidence_by_how_much(device: Make) -> None:
    async with device("0.75", random=0.3) as one:
        text = await one.answer()
        ((prompt, answer, reference),) = one.asked()
        assert (answer, reference) == (text, "c")
        reads = one.hosted.texts.token_bytes
        assert prompt == b"".join(map(reads, IDS)).decode()
        assert one.evidence == updated_by_share(FRESH, share=0.25, bound=BOUND)
        assert (one.hosted.counts.audited, one.hosted.counts.audit_harm) == (1, 0)  # 0.3 is not below 0.25
        await one.answer("import os\nimport ")
        assert one.asked()[-1][0] == "import os\nimport "


async def test_answers_that_are_worse_than_promised_end_the_promise(device: Make) -> None:
    async with device("0.5") as one:
        for _ in range(60):
            await one.answer()
            if one.hosted.mode is CascadeMode.CLOUD_ONLY:
                break
        assert one.hosted.mode is CascadeMode.CLOUD_ONLY
        assert await one.answer() == "c"


async def test_without_the_function_answers_are_kept_no_audit_is_made_and_that_is_said(
    device: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with device("0.0", named="") as one:
        for _ in range(3):
            assert await one.answer() != "c"
        assert one.asked() == []
        assert one.hosted.counts.audited == 0
        assert one.evidence == FRESH
        assert one.hosted.grader.unavailable == 3
        why = r"nothing on this device watches the promise: .* score.py:grade \(sha256:\w{12}\) says, and cascade"
        assert re.match(why, one.hosted.grader.problem)
        assert any("promise is not watched" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("named", "certified", "why"),
    [
        ("nowhere.py:grade", "score.py:grade", "cascade.metric_of: .*nowhere.py: no such file"),
        ("score.py:grade", "score.py:other", "the certificate is about score.py:other with source sha256:.*; copy the"),
        ("changed.py:grade", "score.py:grade", "names changed.py:grade with source sha256:.* for 'm', and the certifi"),
        ("score.py:grade", "score.py:grade", ""),
        ("score:grade", "anywhere/score.py:grade", ""),
    ],
)
def test_only_the_very_function_may_grade(tmp_path: Path, named: str, certified: str, why: str) -> None:
    (tmp_path / "score.py").write_text("def grade(prompt, answer, reference):\n    return 0.5\n")
    (tmp_path / "changed.py").write_text("def grade(prompt, answer, reference):\n    return 0.9\n")
    digest = TextMetric.load("score.py:grade", tmp_path, setting="test").opinion.digest
    promised = datapath.certificate(opinion=Opinion(metric=certified, digest=digest), test="betting")
    assert re.search(why, grader_for("m", promised, named, base=tmp_path).problem)
    assert bool(why) == bool(grader_for("m", promised, named, base=tmp_path).problem)


async def test_an_answer_that_the_metric_fails_on_is_as_harmful_as_can_be(device: Make) -> None:
    """Left out, only answers that it likes would count."""
    failures = "(lambda: 1 / 0, lambda: float('nan'), lambda: 2.0, lambda: None)"
    async with device(f"{failures}[__import__('pathlib').Path({{asked!r}}).read_text().count(chr(10)) - 1]()") as one:
        expected = FRESH
        for _ in range(4):
            await one.answer()
            expected = updated_by_share(expected, share=1.0, bound=BOUND)
        assert one.evidence == expected
        assert len(one.asked()) == 4
        assert one.hosted.grader.problem == ""


async def test_a_metric_that_never_ends_is_asked_once_and_holds_nothing_up(device: Make) -> None:
    async with device("__import__('threading').Event().wait()", timeout_s=0.2) as one:
        await one.answer()
        assert "score.py:grade gave no grade within 0.2 s and is asked no more" in one.hosted.grader.problem
        await one.answer()
        assert len(one.asked()) == 1
        assert one.hosted.counts.audited == 0
        assert one.hosted.grader.unavailable == 2


def test_a_promise_about_equal_answers_needs_no_function() -> None:
    assert grader_for("m", None, "").problem == ""
    assert grader_for("m", datapath.certificate(), "nowhere.py:grade").problem == ""


def test_an_opinion_of_texts_is_no_promise_of_a_model_that_answers_with_arrays(tmp_path: Path) -> None:
    opinion = Opinion(metric="score.py:grade", digest="sha256:" + "5" * 64)
    plan = datapath.load_plan(tmp_path, certified=datapath.certificate(opinion=opinion, test="betting"))
    found, why = usable_certificate(plan, None)
    assert found is None
    assert "opinion of texts, and this model answers with arrays" in why
