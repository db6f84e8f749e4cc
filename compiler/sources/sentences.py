"""What a directory says about its texts: how long they may be, and what was done to them in training.

sentence-transformers keeps it in files of its own, others in the tokenizer's. Small JSON files are read, nothing else.
What is not said is left out: who serves texts has to find another source, or serves none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from compiler.sources.detection import CONFIG_FILE, POOLING_LIST, read_json
from penstock.errors import InvalidInput

FACTS = "texts"
"""Where an export's facts keep what is read here."""

SETTINGS_FILE, PROMPTS_FILE = "sentence_bert_config.json", "config_sentence_transformers.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_LARGEST = 10**6  # transformers writes 1e30 for "not known"
_PLACES_FROM_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})


def facts(directory: Path) -> dict[str, Any]:
    """Return the facts for an export, under :data:`FACTS`; nothing where the directory says nothing.

    Raises:
        InvalidInput: a file that is damaged, or a default prompt that it does not have.
    """
    settings = _read(_transformer(directory) / SETTINGS_FILE)
    said: dict[str, Any] = {}
    if most := _max_tokens(directory, settings):
        said["max_tokens"] = most
    if settings.get("do_lower_case") is True:
        said["is_lower_case"] = True
    if prefix := _prefix(directory):
        said["prefix"] = prefix
    return {FACTS: said} if said else {}


def _max_tokens(directory: Path, settings: Mapping[str, Any]) -> int:
    """Return what sentence-transformers says, or else what tokenizer and positions allow, as it does; 0 for nothing."""
    own = _count(settings.get("max_seq_length"))
    if own:
        return own
    config = _read(directory / CONFIG_FILE)
    places = _count(config.get("max_position_embeddings"))
    if config.get("model_type") in _PLACES_FROM_PADDING:  # their first place is behind the padding token's
        places = max(0, places - 1 - _count(config.get("pad_token_id")))
    found = [one for one in (places, _count(_read(directory / _TOKENIZER_SETTINGS).get("model_max_length"))) if one]
    return min(found, default=0)


def _prefix(directory: Path) -> str:
    document = _read(directory / PROMPTS_FILE)
    name, prompts = document.get("default_prompt_name"), document.get("prompts")
    if not isinstance(name, str):
        return ""
    text = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not isinstance(text, str):
        raise InvalidInput(f"{directory / PROMPTS_FILE}: no prompt {name!r}, which is the default one", field="model")
    return text


def _transformer(directory: Path) -> Path:
    """Return where sentence-transformers keeps its first module."""
    if not (directory / POOLING_LIST).is_file():
        return directory
    try:
        modules = msgspec.json.decode((directory / POOLING_LIST).read_bytes(), type=list[dict[str, Any]])
    except (msgspec.MsgspecError, OSError) as error:
        raise InvalidInput(f"{directory / POOLING_LIST}: not a list of modules: {error}", field="model") from error
    path = modules[0].get("path") if modules else ""
    if not isinstance(path, str) or ".." in Path(path).parts or Path(path).is_absolute():
        raise InvalidInput(f"{directory / POOLING_LIST}: path {path!r} leaves the directory", field="model")
    return directory / path


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _count(value: object) -> int:
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST
    return int(value) if is_count else 0  # type: ignore[call-overload]
