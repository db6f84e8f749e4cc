"""Embeddings as OpenAI's API has them: the request, and vectors as numbers or as base64 of little-endian floats."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.generation.plane import Embedded, EmbeddingRequest
from penstock.openai.decoding_fields import model_of
from penstock.openai.json_body import convert, read_object, unknown_names
from penstock.openai.requests import prompts_of

MAX_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""

_REFUSED = ("add_special_tokens", "normalize", "truncate_prompt_tokens")
"""Fields of vLLM's that would change the vectors."""


class _Fields(msgspec.Struct, kw_only=True):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    input: Any = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None
    penstock: dict[str, bool | int | float | str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingCall:
    """A decoded request for embeddings.

    Attributes:
        model: as the client wrote it, which the answer repeats.
        request: what is asked for.
        is_base64: how vectors travel.
        ignored: names of fields that were sent and are not read.
    """

    model: str
    request: EmbeddingRequest
    is_base64: bool
    ignored: tuple[str, ...]


def read_embedding(body: bytes) -> EmbeddingCall:
    """Read the body of ``POST /v1/embeddings``.

    Raises:
        InvalidInput: wrong in any way; ``field`` is the part that is.
    """
    document = read_object(body)
    for name in _REFUSED:
        if document.get(name) is not None:
            raise InvalidInput(f"{name}: not done here, and the vectors would be others; leave it out", field=name)
    fields = convert(document, _Fields)
    name, version = model_of(fields.model)
    inputs = prompts_of(fields.input, field="input", most=MAX_INPUTS, why="a vector is of at least one token")
    request = EmbeddingRequest(
        model=name, version=version, inputs=inputs, dimensions=fields.dimensions, parameters=fields.penstock or {}
    )
    return EmbeddingCall(
        model=fields.model,
        request=request,
        is_base64=fields.encoding_format == "base64",
        ignored=unknown_names(document, (*msgspec.structs.asdict(fields), *_REFUSED)),
    )


def embeddings_document(call: EmbeddingCall, made: Embedded) -> dict[str, Any]:
    """Write the answer; each vector travels as FP32."""
    account = {**made.account, "ignored": ", ".join(call.ignored)} if call.ignored else dict(made.account)
    return {
        "object": "list",
        "model": call.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, call.is_base64)}
            for index, vector in enumerate(made.vectors)
        ],
        "usage": {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens},
        "penstock": account,
    }


def _written(vector: NDArray[np.floating[Any]], is_base64: bool) -> str | list[float]:
    floats = vector.astype("<f4")
    return base64.b64encode(floats.tobytes()).decode() if is_base64 else floats.tolist()
