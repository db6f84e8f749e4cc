"""Text to token arrays by a ``tokenizer.json``, cut and padded to one length, as the model's inputs demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.data.parts import Request
from compiler.recipe.data_section import DataSection, TokenizerSection
from penstock.errors import ConfigError, InvalidInput, missing_extra
from penstock.wire import tensors
from penstock.wire.tensors import Array, TensorSpec

MADE = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that a tokenizer makes, by the names that exported models give them."""

DEFAULT_LENGTH = 128
_MAX_TOKENIZER_BYTES = 64 * 1024**2
PADS = ("[PAD]", "<pad>", "<|endoftext|>")
"""Names of padding tokens, where a file does not say which it is."""

_CHUNK_ROWS = 1024
_FIELD = "data.tokenizer"


def encode(texts: Sequence[NDArray[np.str_]], request: Request) -> dict[str, Array]:
    """Encode texts into the token inputs among the model's.

    Args:
        texts: one array of words [N], or the two of a pair.

    Raises:
        ConfigError: the model takes no tokens, or the tokenizer has no token to pad with. MissingExtra.
        InvalidInput: not a tokenizer.json, or a row that is too long where truncation is "none".
    """
    specs = [spec for spec in request.inputs if spec.name in MADE]
    settings = request.section.tokenizer
    if not specs:
        takes = ", ".join(spec.name for spec in request.inputs)
        raise ConfigError(f"data.text: a tokenizer makes {', '.join(MADE)}, but the model takes {takes}")
    tokenizer = _load(request.base / settings.file)
    length, padded = lengths(request.section, specs, own=_truncates_to(tokenizer))
    padding = _padding(tokenizer, settings)
    _prepare(tokenizer, settings, length)
    encodings: list[Any] = []
    rows = len(texts[0])
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = [text[start : start + _CHUNK_ROWS].tolist() for text in texts]
        encodings += tokenizer.encode_batch(chunk[0] if len(chunk) == 1 else list(zip(*chunk, strict=True)))
        request.progress(f"{len(encodings)} rows tokenized")
    longest = max(len(encoding.ids) for encoding in encodings)
    if longest > length:
        row = next(row for row, encoding in enumerate(encodings) if len(encoding.ids) > length)
        raise InvalidInput(
            f"data.text: row {row} has {len(encodings[row].ids)} tokens, more than {length}; raise "
            "data.tokenizer.max_length or let data.tokenizer.truncation cut it",
            field="data.text",
        )
    return _arrays(encodings, specs, length if padded else longest, padding)


def label_tokens(labels: Array | None, section: DataSection, base: Path) -> Array | None:
    """Return labels that are texts as their tokens [N, length], filled up with -1 and without special tokens; any other
    labels, and those of a recipe without a tokenizer, as they are.

    Raises:
        InvalidInput, MissingExtra: as :func:`encode`.
    """
    if labels is None or labels.dtype.kind not in "OU" or not section.tokenizer.file:
        return labels
    tokenizer = _load(base / section.tokenizer.file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [str(label) for label in labels.ravel().tolist()]
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    tokens = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens


def lengths(section: DataSection, specs: Sequence[TensorSpec], *, own: int = 0) -> tuple[int, bool]:
    """Return (largest number of tokens, whether every row is padded to it).

    Args:
        own: what the tokenizer's own file truncates to; 0 if it does not.

    Raises:
        ConfigError: the settings want another length than the model's fixed one.
    """
    settings = section.tokenizer
    fixed = {spec.shape[1] for spec in specs if spec.name in MADE and len(spec.shape) == 2 and spec.shape[1] > 0}
    if not fixed:
        return settings.max_length or own or DEFAULT_LENGTH, settings.padding == "max_length"
    (length, *_) = fixed
    if len(fixed) > 1 or settings.max_length not in (0, length):
        raise ConfigError(
            f"data.tokenizer.max_length: {settings.max_length} given, but the model takes exactly "
            f"{', '.join(map(str, sorted(fixed)))} tokens"
        )
    return length, True


def own_length(path: Path) -> int:
    """Return what a tokenizer's own file truncates to; 0 if it does not.

    Raises:
        InvalidInput, MissingExtra: as :func:`encode`.
    """
    return _truncates_to(_load(path))


def _truncates_to(tokenizer: Any) -> int:
    return int((tokenizer.truncation or {}).get("max_length", 0))


def _load(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "data", "turning text into tokens") from error
    try:
        size = path.stat().st_size
        if size > _MAX_TOKENIZER_BYTES:
            raise InvalidInput(f"{path}: {size} bytes, at most {_MAX_TOKENIZER_BYTES}", field=f"{_FIELD}.file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file", field=f"{_FIELD}.file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not readable: {error}", field=f"{_FIELD}.file") from error
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for a malformed document
        raise InvalidInput(
            f"{path}: not a tokenizer.json of the Hugging Face tokenizers library: {str(error)[:200]}",
            field=f"{_FIELD}.file",
        ) from error


def _prepare(tokenizer: Any, settings: TokenizerSection, length: int) -> None:
    """Cut while encoding, where special tokens are counted; pad afterwards, over all rows."""
    own = tokenizer.truncation or {}
    tokenizer.no_padding()
    if settings.truncation == "none":
        tokenizer.no_truncation()
    else:
        direction = own.get("direction", "right")
        tokenizer.enable_truncation(length, strategy=settings.truncation, direction=direction)


def _padding(tokenizer: Any, settings: TokenizerSection) -> tuple[int, int, bool]:
    """Return (id of the padding token, its type, whether it goes on the left), by the tokenizer's own where it pads.

    Raises:
        ConfigError: no token to pad with.
    """
    own = tokenizer.padding or {}
    left = own.get("direction", "right") == "left"
    if settings.pad_token or not own:
        for token in (settings.pad_token,) if settings.pad_token else PADS:
            if tokenizer.token_to_id(token) is not None:
                return int(tokenizer.token_to_id(token)), int(own.get("pad_type_id", 0)), left
        tried = settings.pad_token or ", ".join(PADS)
        raise ConfigError(f"data.tokenizer.pad_token: the tokenizer has no token {tried}; name one that it has")
    return int(own["pad_id"]), int(own["pad_type_id"]), left


def _arrays(
    encodings: Sequence[Any], specs: Sequence[TensorSpec], length: int, padding: tuple[int, int, bool]
) -> dict[str, Array]:
    pad_id, pad_type, left = padding
    values = {
        "input_ids": (pad_id, "ids"),
        "attention_mask": (0, "attention_mask"),
        "token_type_ids": (pad_type, "type_ids"),
    }
    made: dict[str, Array] = {}
    for spec in specs:
        fill, attribute = values[spec.name]
        dtype = tensors.numpy_dtype(spec.datatype, field=spec.name)
        array = np.full((len(encodings), length), fill, dtype=dtype)
        for row, encoding in zip(array, encodings, strict=True):
            tokens = getattr(encoding, attribute)
            row[length - len(tokens) if left else 0 : length if left else len(tokens)] = tokens
        made[spec.name] = array
    return made
