"""Read what onnxruntime-genai's builder wrote beside a model, and say whether slots can run it.

The format is ``genai_config.json`` (onnxruntime-genai, ``src/config.h``). Loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ArtifactError

CONFIG_FILE = "genai_config.json"
_MAX_CONFIG_BYTES = 1024**2

TRIED = frozenset({"gemma", "granite", "llama", "mistral", "olmo", "qwen2", "qwen3", "smollm3"})
"""Types of models with which slots were seen to answer as onnxruntime-genai does. Others may differ in what a graph
computes from the length of a whole batch (``phi3`` chooses its rotary factors by it), which no interface shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFile:
    """What is known of a model before it is loaded.

    Attributes:
        context_tokens: most tokens of prompt and answer together.
        layers: each has keys and values of ``kv_heads`` heads of ``head_size`` numbers for every token.
        past_names: inputs of keys and of values, with %d for the layer; ``present_names`` are the outputs.
    """

    path: Path
    context_tokens: int
    vocabulary: int
    end_ids: frozenset[int]
    layers: int
    kv_heads: int
    head_size: int
    ids_name: str
    mask_name: str
    logits_name: str
    past_names: tuple[str, str]
    present_names: tuple[str, str]


def read_config(directory: Path) -> Mapping[str, Any]:
    """Read the configuration of a built model.

    Raises:
        ArtifactError: there is none, or it is none.
    """
    path = directory / CONFIG_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        if len(content) > _MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(content)
        if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
            raise ValueError("it has no section 'model'")
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{directory.name}: no model for onnxruntime-genai: {CONFIG_FILE}: {error}") from error
    return config


def unsuitable(config: Mapping[str, Any], provider: str = "cpu") -> str | None:
    """Say why slots cannot run such a model; None where they can.

    Slots keep keys and values of every token of a request at fixed places of main memory, and run rows of different
    lengths at once. What keeps something else (a window, a state, an encoder's output), keeps it elsewhere, or is
    several models, is for onnxruntime-genai.
    """
    if provider != "cpu":
        return f"provider {provider} keeps keys and values on its device"
    model = config.get("model", {})
    decoder = model.get("decoder", {})
    kind = model.get("type")
    parts = sorted({"encoder", "vision", "speech", "embedding", "draft"} & set(model))
    if parts:
        return f"it has another model beside the decoder ({', '.join(parts)})"
    if kind not in TRIED:
        return f"type {kind} is none of {', '.join(sorted(TRIED))}"
    kept = sorted({"sliding_window", "pipeline", "layer_types", "past_names", "state_names"} & _set_keys(decoder))
    if kept:
        return f"its decoder has {', '.join(kept)}"
    if not config.get("search", {}).get("past_present_share_buffer"):
        return "its keys and values are not written in place (past_present_share_buffer)"
    return _strange_interface(decoder)


def _set_keys(decoder: Mapping[str, Any]) -> set[str]:
    """Return the keys of a decoder and of its inputs that have a value."""
    sections = (decoder, decoder.get("inputs", {}))
    return {key for section in sections for key, value in section.items() if value not in (None, [], {})}


_INPUTS = {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
_OUTPUTS = {"logits", "present_key_names", "present_value_names"}


def _strange_interface(decoder: Mapping[str, Any]) -> str | None:
    found = set(decoder.get("inputs", {})), set(decoder.get("outputs", {}))
    if found != (_INPUTS, _OUTPUTS):
        strange = sorted((found[0] ^ _INPUTS) | (found[1] ^ _OUTPUTS))
        return f"its inputs and outputs differ in {', '.join(strange)}"
    return None


def read(directory: Path, config: Mapping[str, Any]) -> DecoderFile:
    """Return what the configuration of a suitable model says.

    Raises:
        ArtifactError: a number or name is missing, or is none.
    """
    try:
        model, decoder = config["model"], config["model"]["decoder"]
        names, outputs = decoder["inputs"], decoder["outputs"]
        ends = model["eos_token_id"]
        return DecoderFile(
            path=directory / str(decoder["filename"]),
            context_tokens=int(model["context_length"]),
            vocabulary=int(model["vocab_size"]),
            end_ids=frozenset(ends if isinstance(ends, list) else [ends]),
            layers=int(decoder["num_hidden_layers"]),
            kv_heads=int(decoder["num_key_value_heads"]),
            head_size=int(decoder["head_size"]),
            ids_name=names["input_ids"],
            mask_name=names["attention_mask"],
            logits_name=outputs["logits"],
            past_names=(names["past_key_names"], names["past_value_names"]),
            present_names=(outputs["present_key_names"], outputs["present_value_names"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{directory.name}: {CONFIG_FILE} has no usable {error}; was it edited?") from error
