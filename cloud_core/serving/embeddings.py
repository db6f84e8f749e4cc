"""Vectors of texts, from the data plane for arrays: texts become rows of tokens, which are asked like any others."""

from __future__ import annotations

from collections.abc import Mapping

from cloud_core.serving.dataplane import DataPlane, Ticket
from cloud_core.serving.router import Served
from cloud_core.serving.served_text import listed
from cloud_core.settings import ServingSettings
from penstock.generation.plane import Embedded, EmbeddingRequest, TextModel
from penstock.hosting import embedding
from penstock.hosting.embedding import Embedding
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array


class Embeddings:
    """Answers for models that take texts and give a vector for each."""

    def __init__(self, plane: DataPlane, settings: ServingSettings) -> None:
        """``plane`` admits, batches and accounts."""
        self._plane, self._max_rows = plane, settings.max_rows_per_request

    async def embed(self, ticket: Ticket, context: RequestContext, request: EmbeddingRequest) -> Embedded:
        """Answer an admitted request; see :class:`penstock.generation.plane.Embedder`."""
        if ticket.route.lane is not None:
            self._plane.settle_arm(ticket, request.parameters)
        texts = _texts_of(ticket, request)
        embedding.check_count(request, self._max_rows)
        rows = await embedding.tokenized(texts, request)

        async def infer(inputs: Mapping[str, Array]) -> InferResponse:
            asked = InferRequest(
                model=request.model,
                version=request.version,
                inputs=inputs,
                outputs=(texts.output,),
                parameters=request.parameters,
            )
            return await self._plane.infer(ticket, context, asked)

        made = await embedding.embed(texts, rows, infer)
        account = {"served_by": "cloud", **made.accounts[0]}
        return Embedded(vectors=made.vectors, prompt_tokens=made.tokens, account=account)

    def embedding_models(self) -> list[TextModel]:
        """List the models that can be asked now."""
        return [
            listed(version, served.embedding.spec.max_tokens)
            for version, served in self._plane.served_versions()
            if isinstance(served, Served) and served.embedding is not None
        ]


def _texts_of(ticket: Ticket, request: EmbeddingRequest) -> Embedding:
    served = ticket.route.served
    if not isinstance(served, Served):
        raise embedding.no_vectors(request.model, "generates text; ask it at /v1/chat/completions or /v1/completions")
    if served.embedding is None:
        raise embedding.no_vectors(request.model)
    return served.embedding
