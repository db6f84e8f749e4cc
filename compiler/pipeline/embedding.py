"""What a variant declares of its texts, so that it can be asked for their vectors: from its source and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from compiler.data import text
from compiler.pipeline.cached_steps import Model
from compiler.recipe.recipes import Recipe
from compiler.sources import sentences
from compiler.sources.detection import read_json
from penstock.artifact.manifests import VariantSpec
from penstock.generation.tokenizer import FILE, MAX_FILE_BYTES
from penstock.policy.text_rows import EmbeddingSpec

TASK = "embedding"


def with_texts(spec: VariantSpec, recipe: Recipe, model: Model) -> VariantSpec:
    """Return a variant's spec with how texts become its inputs; as it is where it cannot be asked for their vectors.

    Args:
        spec: with its inputs, outputs and preprocessing.
        model: the variant's source, with the files that came along.

    Raises:
        InvalidInput: its tokenizer.json is no JSON.
    """
    declared = _declared(spec, recipe, model)
    return spec if declared is None else msgspec.structs.replace(spec, embedding=declared)


def _declared(spec: VariantSpec, recipe: Recipe, model: Model) -> EmbeddingSpec | None:
    path = next((path for path in model.files if path.name == FILE), None)
    output = next(one for one in spec.outputs if one.name == spec.score_output)
    names = {one.name for one in spec.inputs}
    if recipe.model.task != TASK or path is None or len(output.shape) != 2:
        return None
    if "input_ids" not in names or not names <= set(text.MADE):
        return None
    said: Mapping[str, Any] = model.facts.get(sentences.FACTS) or {}
    fixed = max(one.shape[1] for one in spec.inputs)
    most = min((tokens for tokens in (said.get("max_tokens", 0), fixed) if tokens > 0), default=0)
    if not most:
        return None
    pad_id, pad_type_id, pads_left = _padding(path)
    done: Mapping[str, Any] = spec.preprocessing["tokenizer"] if recipe.data.text else {}
    return EmbeddingSpec(
        max_tokens=most,
        pad_id=pad_id,
        pad_type_id=pad_type_id,
        pads_left=pads_left,
        prefix=said.get("prefix", ""),
        is_lower_case=said.get("is_lower_case", False),
        measured_tokens=done.get("max_length", 0),
        is_padded=done.get("padding") == "max_length",
    )


def _padding(path: Path) -> tuple[int, int, bool]:
    """Return (id of a tokenizer's padding token, its type, whether it goes on the left), as its file says.

    Without the library that reads tokenizers, which compiling rows of tokens does not need. A file that names none gets
    0: a model with a mask does not look at it, and rows of others are never padded, but for a fixed length.
    """
    document = read_json(path, limit_bytes=MAX_FILE_BYTES)
    own = document.get("padding") or {}
    added = {token.get("content"): token.get("id", 0) for token in document.get("added_tokens") or []}
    found = next((added[name] for name in text.PADS if name in added), 0)
    return int(own.get("pad_id", found)), int(own.get("pad_type_id", 0)), own.get("direction") == "Left"
