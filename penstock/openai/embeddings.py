"""Embeddings as OpenAI's API has them: the request, and vectors as numbers or as base64 of little-endian floats."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.openai.decoding_fields import model_of
from penstock.openai.json_body import convert, read_object, unknown_names
from penstock.openai.requests import prompts_of


class _Fields(msgspec.Struct, kw_only=True):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    input: Any = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingCall:
    """A decoded request for embeddings.

    Attributes:
        model: as the client wrote it, which the answer repeats.
        dimensions: as many are wanted; None for all. A model that was not trained to be cut has to refuse it.
        is_base64: how vectors travel.
        ignored: names of fields that were sent and are not read.
    """

    model: str
    name: str
    version: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None
    is_base64: bool
    ignored: tuple[str, ...]


def read_embedding(body: bytes) -> EmbeddingCall:
    """Read the body of ``POST /v1/embeddings``.

    Raises:
        InvalidInput: wrong in any way; ``field`` is the part that is.
    """
    document = read_object(body)
    fields = convert(document, _Fields)
    name, version = model_of(fields.model)
    return EmbeddingCall(
        model=fields.model,
        name=name,
        version=version,
        inputs=prompts_of(fields.input, field="input"),
        dimensions=fields.dimensions,
        is_base64=fields.encoding_format == "base64",
        ignored=unknown_names(document, msgspec.structs.asdict(fields)),
    )


def embeddings_document(
    vectors: Sequence[NDArray[np.floating[Any]]], call: EmbeddingCall, *, prompt_tokens: int
) -> dict[str, Any]:
    """Write the answer; each vector has one dimension and travels as FP32."""
    return {
        "object": "list",
        "model": call.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, call.is_base64)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }


def _written(vector: NDArray[np.floating[Any]], is_base64: bool) -> str | list[float]:
    floats = vector.astype("<f4")
    return base64.b64encode(floats.tobytes()).decode() if is_base64 else floats.tolist()
