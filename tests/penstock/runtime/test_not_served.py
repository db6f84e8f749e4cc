"""A variant that nothing here can load is named as such before anybody waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.updates.fetch import choose_variant
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import ArtifactError
from penstock.runtime import not_served
from tests.factories import echo_spec


def test_what_is_served_needs_no_words() -> None:
    assert [not_served(engine) for engine in ("onnx", "echo", "genai")] == ["", "", ""]
    assert "they load genai, onnx" in not_served("tensorrt")


def test_a_device_takes_a_variant_that_it_can_load_and_fetches_no_other(tmp_path: Path) -> None:
    weights = tmp_path / "w.json"
    weights.write_bytes(b"[]")
    drafts = [
        VariantDraft(spec=echo_spec("edge", engine="tensorrt", target="gpu"), weights=weights),
        VariantDraft(spec=echo_spec("edge", target="any"), weights=weights),
        VariantDraft(spec=echo_spec("cloud"), weights=weights),
    ]
    layout = Layout.create(tmp_path / "layout")
    layout.pack(drafts, tag="v1")
    assert choose_variant(layout.artifact(), ["gpu", "any"]).spec.target == "any"
    with pytest.raises(ArtifactError, match="no agent or core of this release loads engine 'tensorrt'"):
        choose_variant(layout.artifact(), ["gpu"])
