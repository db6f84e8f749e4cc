"""What a variant declares of its texts, so that it can be asked for their vectors: from its source and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from compiler.data import text
from compiler.pipeline.cached_steps import Model
from compiler.recipe.recipes import Recipe
from compiler.sources import sentences
from penstock.artifact.manifests import VariantSpec
from penstock.generation.tokenizer import FILE
from penstock.policy.text_rows import EmbeddingSpec

TASK = "embedding"


def with_texts(spec: VariantSpec, recipe: Recipe, model: Model) -> VariantSpec:
    """Return a variant's spec with how texts become its inputs; as it is where it cannot be asked for their vectors.

    Args:
        spec: with its inputs, outputs and preprocessing.
        model: the variant's source, with the files that came along.

    Raises:
        ConfigError: its tokenizer has no token to pad with. MissingExtra, InvalidInput: it cannot be read.
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
    settings = recipe.data.tokenizer
    pad_id, pad_type_id, pads_left = text.padding_of(path, settings)
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
