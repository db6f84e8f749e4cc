"""Texts in, vectors out, for variants that take rows of tokens: tokenize, group, ask, put together.

Asks through the data plane of its room, as a client that sends tokens would: batching, limits and accounts are those of
every request for arrays. Padding is masked away, and where a model's rows or its padding change its vectors each text
is asked as it was when the variant was measured (``penstock.policy.text_rows``). Knows no room and no transport.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from penstock.artifact.manifests import VariantSpec
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import ArtifactError, Internal, InvalidInput, MissingExtra, copy_of
from penstock.generation.plane import EmbeddingRequest
from penstock.generation.row_tokenizer import RowTokenizer, TokenRow
from penstock.policy.text_rows import EmbeddingSpec, Group, groups, row_length
from penstock.process.telemetry import log
from penstock.wire.inference import InferResponse, Parameter
from penstock.wire.tensors import Array, numpy_dtype

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
"""Inputs that a tokenizer makes, by the names that exported models give them."""

_AT_ONCE = 4  # calls of one request: the others' are not to wait behind all of a long list
_QUICK_CHARS = 16_384
_LOG = logging.getLogger(__name__)

Infer = Callable[[Mapping[str, Array]], Awaitable[InferResponse]]
"""Asks the data plane for the vectors of some rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What became of texts.

    Attributes:
        vectors: one for each text, in order, each with one dimension.
        tokens: of all texts.
        accounts: who gave them and why, one for each call of the model.
    """

    vectors: Sequence[Array]
    tokens: int
    accounts: Sequence[Mapping[str, Parameter]]


class Embedding:
    """The text side of one variant.

    Attributes:
        spec: how its texts become rows.
        output: name of its vectors.
        size: numbers of a vector; -1 where the model does not say.
    """

    def __init__(self, variant: VariantSpec, spec: EmbeddingSpec, tokenizer: RowTokenizer | MissingExtra, *,
                 max_rows: int) -> None:  # fmt: skip
        """
        Args:
            tokenizer: or why there is none here.
            max_rows: that run together; 1 where they change each other's vectors.
        """
        self.spec, self._tokenizer, self._max_rows = spec, tokenizer, max_rows
        self.output = variant.score_output
        self.size = next(one.shape[-1] for one in variant.outputs if one.name == self.output)
        self._inputs = variant.inputs
        self._fixed = max((one.shape[1] for one in variant.inputs), default=0)
        self._may_pad = max_rows > 1 and any(one.name == MASK for one in variant.inputs)

    def __repr__(self) -> str:
        return f"Embedding({self.output!r}, {self.size} numbers, at most {self.spec.max_tokens} tokens)"

    def tokenized(self, request: EmbeddingRequest) -> list[TokenRow]:
        """Return the tokens of each text.

        Raises:
            InvalidInput: a text that is too long, a token that is none, ``dimensions`` that the model does not have.
            MissingExtra: the library that reads tokenizers is not installed.
        """
        if request.dimensions not in (None, self.size):
            raise InvalidInput(
                f"dimensions: {request.dimensions} asked for, but the model gives {self.size} and was not trained to "
                "be cut; leave it out",
                field="dimensions",
            )
        if isinstance(self._tokenizer, MissingExtra):
            raise copy_of(self._tokenizer)  # raised again and again, one would gather tracebacks
        rows = []
        for place, one in enumerate(request.inputs):
            field = f"input[{place}]" if len(request.inputs) > 1 else "input"
            if isinstance(one, str):
                rows.append(self._tokenizer.of_text(self._prepared(one), field=field))
            else:
                rows.append(self._tokenizer.of_ids(one, field=field))
        return rows

    def groups(self, rows: Sequence[TokenRow]) -> Iterator[Group]:
        """Decide which rows are asked for together, and how long they are."""
        lengths = [
            row_length(len(row.ids), self.spec, fixed=max(0, self._fixed), may_pad=self._may_pad) for row in rows
        ]
        return groups(lengths, max_rows=self._max_rows)

    def arrays(self, rows: Sequence[TokenRow], group: Group) -> dict[str, Array]:
        """Write the rows of a group, padded to its length."""
        spec, made = self.spec, {}
        for one in self._inputs:
            fill = {IDS: spec.pad_id, MASK: 0, TYPES: spec.pad_type_id}[one.name]
            array = np.full((len(group.places), group.length), fill, dtype=numpy_dtype(one.datatype))
            for line, place in zip(array, group.places, strict=True):
                row = rows[place]
                tokens = len(row.ids)
                begin = group.length - tokens if spec.pads_left else 0
                line[begin : begin + tokens] = {IDS: row.ids, MASK: 1, TYPES: row.types}[one.name]
            made[one.name] = array
        return made

    def _prepared(self, text: str) -> str:
        text = self.spec.prefix + text
        # as sentence-transformers does, for tokenizers to which outer white space would be a token
        return (text.lower() if self.spec.is_lower_case else text).strip()


def load(variant: VariantSpec, files: VariantFiles, *, max_rows: int) -> Embedding | None:
    """Return the text side of a variant; None for one that declares none. Blocks: call it from a thread.

    Args:
        max_rows: as the variant was seen to stand it (``penstock.hosting.loading.Loaded.max_batch``).

    Raises:
        ArtifactError: what it declares does not fit it, or its tokenizer is none.
    """
    spec = variant.embedding
    if spec is msgspec.UNSET:
        return None
    check_declared(variant, spec)
    path = files.weights.parent / spec.tokenizer
    if not path.is_file():
        raise ArtifactError(f"{variant.model}: no file {spec.tokenizer}, which its embedding is declared with")
    tokenizer: RowTokenizer | MissingExtra
    try:
        tokenizer = RowTokenizer(path.read_bytes(), name=spec.tokenizer, max_tokens=spec.max_tokens)
    except MissingExtra as error:  # rows of tokens are answered all the same
        log(_LOG, logging.WARNING, "texts are not answered", model=variant.model, reason=error.message)
        tokenizer = error
    return Embedding(variant, spec, tokenizer, max_rows=max_rows)


def check_declared(variant: VariantSpec, spec: EmbeddingSpec) -> None:
    """
    Raises:
        ArtifactError: inputs that no tokenizer makes, an output that is no vector for each row, or another length.
    """
    output = next((one for one in variant.outputs if one.name == variant.score_output), None)
    if output is None or len(output.shape) != 2:
        raise ArtifactError(f"{variant.model}: output {variant.score_output!r} is no vector for each text")
    lengths = {one.shape[1] for one in variant.inputs if len(one.shape) == 2}
    names = {one.name for one in variant.inputs}
    if IDS not in names or not names <= {IDS, MASK, TYPES} or len(lengths) != 1:
        raise ArtifactError(f"{variant.model}: inputs {', '.join(sorted(names))} are not made of a text by a tokenizer")
    if lengths != {-1} and max(lengths) < spec.max_tokens:
        raise ArtifactError(
            f"{variant.model}: takes {max(lengths)} tokens, and texts of {spec.max_tokens} are declared"
        )


async def tokenized(embedding: Embedding, request: EmbeddingRequest) -> list[TokenRow]:
    """Tokenize as :meth:`Embedding.tokenized` does; in a thread where that takes time."""
    if sum(len(one) for one in request.inputs) <= _QUICK_CHARS:
        return embedding.tokenized(request)
    return await asyncio.to_thread(embedding.tokenized, request)


async def embed(embedding: Embedding, rows: Sequence[TokenRow], infer: Infer) -> Vectors:
    """Ask for the vectors of texts whose tokens are known.

    Raises:
        Internal: vectors that are not finite, or of another number than the texts. Others: as ``infer`` does.
    """
    found: dict[int, Array] = {}
    accounts: list[Mapping[str, Parameter]] = []
    waiting = embedding.groups(rows)

    async def work() -> None:
        for group in waiting:
            answer = await infer(embedding.arrays(rows, group))
            vectors = answer.outputs[embedding.output]
            if vectors.shape[:1] != (len(group.places),) or not np.isfinite(vectors).all():
                raise Internal(f"output {embedding.output!r} is no finite vector for each of {len(group.places)} texts")
            found.update(zip(group.places, vectors, strict=True))
            accounts.append(answer.parameters)

    workers = [asyncio.create_task(work()) for _ in range(min(_AT_ONCE, len(rows)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return Vectors(
        vectors=[found[place] for place in range(len(rows))],
        tokens=sum(len(row.ids) for row in rows),
        accounts=accounts,
    )


def check_count(request: EmbeddingRequest, most: int) -> None:
    """
    Raises:
        InvalidInput: more texts than a request may have rows.
    """
    if len(request.inputs) > most:
        raise InvalidInput(f"input: {len(request.inputs)} texts, at most {most} in one request", field="input")


def no_vectors(model: str, why: str = "") -> InvalidInput:
    """Return what a request for vectors of texts is told by a model that gives none."""
    why = why or (
        "declares no texts; compile a sentence encoder from a directory with its tokenizer.json (task = 'embedding'), "
        f"or send rows of tokens to /v2/models/{model}/infer"
    )
    return InvalidInput(f"model {model!r} {why}", field="model")
