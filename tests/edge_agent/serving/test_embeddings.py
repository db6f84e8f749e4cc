"""Vectors of texts on a device: where they come from with and without a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.serving.embeddings import Embeddings, joined
from edge_agent.serving.load_plan import LoadPlan
from edge_agent.settings import CascadeSettings
from penstock.artifact.certificates import Certificate
from penstock.artifact.variant_files import verified_files
from penstock.errors import InvalidInput, Unavailable
from penstock.generation.plane import Embedded, EmbeddingRequest
from penstock.policy.text_rows import EmbeddingSpec
from tests import encoder
from tests.edge_agent.datapath import CERTIFICATE, data_path, load_plan, text_plan
from tests.factories import certificate_for

LONG = "the dog sleeps on a mat by night"
MEASURED = EmbeddingSpec(max_tokens=encoder.MAX_TOKENS, measured_tokens=6)


def plan_of(folder: Path, *, threshold: float | None = None, **changes: Any) -> LoadPlan:
    layout = encoder.layout(folder, **changes)
    plan = text_plan(layout, folder)
    if threshold is None:
        return plan
    certified: Certificate = certificate_for(layout, threshold=threshold, harm="disagreement")
    files = verified_files(plan.variant, layout.blobs, folder / "unpacked")
    return LoadPlan(
        model=plan.model, version=plan.version, artifact_digest=plan.artifact_digest, variant=plan.variant, files=files,
        certificate_digest=CERTIFICATE, certificate=certified, subject=plan.subject,
    )  # fmt: skip


async def ask(
    folder: Path, plan: LoadPlan, *texts: str, cascade: CascadeSettings | None = None, **parameters: Any
) -> Embedded:
    settings = cascade or CascadeSettings()
    async with data_path(folder, plan=plan, cascade=settings) as path:
        embeddings = Embeddings(path.dataplane, settings)
        assert [model.context_tokens for model in embeddings.embedding_models()] == [encoder.MAX_TOKENS]
        request = EmbeddingRequest(model=encoder.NAME, inputs=texts, parameters=parameters)
        context = path.context()
        with path.dataplane.admit(context, encoder.NAME, "", 100) as ticket:
            return await embeddings.embed(ticket, context, request)


@pytest.mark.parametrize(
    ("threshold", "texts", "reason"),
    [
        (None, ("the dog",), "uncertified"),
        (0.0, ("the dog", "a mat"), "confident"),
        (0.99, ("the dog",), "cloud_unreachable"),  # escalated, and nobody is there
        (0.0, ("the dog", LONG), "uncertified"),  # the certificate saw no text of that length
    ],
)
async def test_the_device_answers_what_no_certificate_covers_and_says_so(
    tmp_path: Path, threshold: float | None, texts: tuple[str, ...], reason: str
) -> None:
    made = await ask(tmp_path, plan_of(tmp_path, threshold=threshold, embedding=MEASURED), *texts)
    assert (made.account["served_by"], made.account["reason"]) == ("edge", reason)
    assert bool(made.account["certificate"]) == (threshold is not None)
    assert made.prompt_tokens == sum(len(encoder.ids_of(text)) for text in texts)


async def test_what_a_client_keeps_to_itself_stays_private(tmp_path: Path) -> None:
    made = await ask(tmp_path, plan_of(tmp_path, threshold=0.99), "the dog", local_only=True)
    assert (made.account["served_by"], made.account["reason"]) == ("edge", "privacy")


async def test_answers_without_a_promise_are_given_only_where_they_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="on_unreachable is 'fail'"):
        await ask(tmp_path, plan_of(tmp_path), "the dog", cascade=CascadeSettings(on_unreachable="fail"))


async def test_a_classifier_gives_no_vectors_of_texts(tmp_path: Path) -> None:
    async with data_path(tmp_path, plan=load_plan(tmp_path, certified=None)) as path:
        request, context = EmbeddingRequest(model="toy", inputs=("a",)), path.context()
        embeddings = Embeddings(path.dataplane, CascadeSettings())
        with path.dataplane.admit(context, "toy", "", 1) as ticket, pytest.raises(InvalidInput, match="no texts"):
            await embeddings.embed(ticket, context, request)


def test_calls_of_one_request_are_summed_up() -> None:
    kept = {"served_by": "edge", "reason": "confident", "confidence": 0.9, "rows_escalated": 0, "threshold": 0.5}
    sent = {"served_by": "cloud", "reason": "escalated", "confidence": 0.2, "rows_escalated": 3, "threshold": 0.5}
    summed = {"served_by": "mixed", "reason": "escalated", "confidence": 0.2, "rows_escalated": 3, "threshold": 0.5}
    assert joined([kept, sent]) == joined([sent, kept]) == summed
    assert joined([kept]) == kept
