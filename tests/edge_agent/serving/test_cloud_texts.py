"""Texts go up by token ids only where these mean the same to both models."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.hosting import Hosting
from edge_agent.serving.load_plan import LoadPlan
from edge_agent.settings import EscalationSettings
from penstock.artifact import manifests
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import shares_file
from penstock.artifact.variant_files import verified_files
from penstock.errors import Unavailable
from penstock.generation.values import GenerationRequest
from penstock.hosting.generation.settings import RemoteSettings
from tests.language import CLOUD, EDGE, text_draft, text_layout

FILE = "tokenizer.json"


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


async def test_ids_that_mean_other_text_never_go_up(tmp_path: Path) -> None:
    layout = with_other_tokenizer(tmp_path)
    artifact = layout.artifact()
    variant = artifact.variant("edge")
    plan = LoadPlan(
        model=artifact.model,
        version="v1",
        artifact_digest=artifact.digest,
        variant=variant,
        files=verified_files(variant, layout.blobs, tmp_path / "unpacked"),
        certificate_digest="",
        certificate=None,
        subject=manifests.subject_of(artifact, variant),
        shares_tokenizer=shares_file(artifact, variant, FILE),
    )
    hosting = Hosting(Outcomes(now=lambda: 0.0))
    hosted = await hosting.prepare(plan)
    hosting.activate(hosted)
    cloud = CloudTexts("http://127.0.0.1:9", EscalationSettings(), RemoteSettings())
    request = GenerationRequest(id="r", prompt_ids=(1, 2), max_new_tokens=2)
    try:
        with pytest.raises(Unavailable, match="another tokenizer"):
            await cloud.of(hosted).begin(request, deadline=float("inf"))
    finally:
        await cloud.close()
        await hosting.close()
