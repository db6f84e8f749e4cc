"""A pair of small language models as an artifact: examples/codecomplete's, built on another day, packed here."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from examples.codecomplete import prompts
from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec
from penstock.policy.text_answers import AnswerSpec
from penstock.wire.tensors import TensorSpec
from tests.factories import certificate_for, variant_spec

MODELS = Path(__file__).parents[1] / "examples" / "codecomplete" / "models"
EDGE, CLOUD = "edge-int4", "cloud-int4"
NAME = "codecomplete"
ANSWER = AnswerSpec(max_new_tokens=16, stop=("\n",))
CHOICE_STOP = ("\n", " ", "(", ")", ".", ",", ":", "=", "[", "]")
_OPTIONS, _LONGEST_CHARS = 4, 200
_CLEAR = 0.3  # of logits, by which a golden token leads


@cache
def references(model: str) -> list[dict[str, Any]]:
    """What onnxruntime-genai answers with one of the built models: prompts, tokens, and by how much each leads."""
    found: list[dict[str, Any]] = json.loads((MODELS / "references.json").read_text())["genai"][model]
    return found


def text_spec(role: Role, **changes: Any) -> VariantSpec:
    ids = {"datatype": "INT64", "shape": (-1, -1)}
    values: dict[str, Any] = {
        "model": NAME,
        "engine": "genai",
        "precision": "int4",
        "inputs": (TensorSpec(name="prompt_ids", **ids),),  # type: ignore[arg-type]
        "outputs": (TensorSpec(name="token_ids", **ids),),  # type: ignore[arg-type]
        "score_output": "token_ids",
        "score_kind": "probabilities",
        "answer": ANSWER,
    }
    return variant_spec(role, **values | changes)


def text_draft(role: Role, model: str, **changes: Any) -> VariantDraft:
    """A variant of a built model, with one golden prompt."""
    directory = MODELS / model
    files = {path.name: path for path in sorted(directory.iterdir()) if path.name != "model.onnx"}
    return VariantDraft(
        spec=text_spec(role, **changes), weights=directory / "model.onnx", golden=golden_of(model), files=files
    )


def golden_of(model: str, *, shift: int = 0) -> bytes:
    """Golden vectors of the clearest row; ``shift`` makes them wrong."""
    rows = [(row, _clear(row["margins"])) for row in references(model)]
    row, tokens = max(rows, key=lambda one: one[1])
    return golden.encode(
        Golden(
            inputs={"prompt_ids": np.array([row["ids"]], np.int64)},
            outputs={"token_ids": np.array([row["new"][:tokens]], np.int64) + shift},
        )
    )


def text_layout(root: Path, tag: str = "v1", *, threshold: float | None = None, **changes: Any) -> Layout:
    """An artifact of both models; with a threshold, also a certificate for the edge's by its least likely token."""
    layout = Layout.create(root / f"layout-{tag}")
    layout.pack([text_draft("edge", EDGE, **changes), text_draft("cloud", CLOUD)], tag=tag)
    if threshold is not None:
        layout.attach_certificate(
            certificate_for(layout, score="token_min", threshold=threshold, harm="disagreement", max_harm=0.1)
        )
    return layout


def choice_rows(drawn: int) -> list[dict[str, Any]]:
    """Prompts of the example that are short, each with the name that stands there, and names of others beside it."""
    rows = [row for row in itertools.islice(prompts.rows(), drawn) if len(row["prompt"]) < _LONGEST_CHARS]
    names = [row["answer"] for row in rows]
    made = []
    for at, row in enumerate(rows):
        others = [name for name in dict.fromkeys(names[at + 1 :] + names[:at]) if name != row["answer"]]
        made.append(row | {"choices": sorted([row["answer"], *others[: _OPTIONS - 1]])})
    return made


def layout_without_engine(root: Path) -> Layout:
    """A language model whose tokenizer can be read, and which no engine loads."""
    broken = root / "broken.json"
    broken.write_bytes(b"{}")
    drafts = [
        replace(draft, files={**draft.files, "genai_config.json": broken})
        for draft in (text_draft("edge", EDGE), text_draft("cloud", CLOUD))
    ]
    layout = Layout.create(root / "layout-broken")
    layout.pack(drafts, tag="v1")
    return layout


def _clear(margins: list[float]) -> int:
    return next((at for at, margin in enumerate(margins) if margin < _CLEAR), len(margins))
