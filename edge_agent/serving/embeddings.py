"""Vectors of texts, from the data plane for arrays: texts become rows of tokens, which are asked like any others.

Vectors that are to be compared have to come from one variant. So a model without a certificate answers here and not
from the cloud, as does one whose certificate says nothing about a text of that length; the answer is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.policy import cascade
from edge_agent.policy.cascade import CascadeMode, Reason
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.hosting import Hosted
from edge_agent.serving.inflight import Ticket
from edge_agent.settings import CascadeSettings
from penstock.generation.plane import Embedded, EmbeddingRequest, TextModel
from penstock.generation.row_tokenizer import TokenRow
from penstock.hosting import embedding
from penstock.hosting.embedding import Embedding
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse, Parameter
from penstock.wire.tensors import Array


class Embeddings:
    """Answers for models that take texts and give a vector for each."""

    def __init__(self, plane: DataPlane, settings: CascadeSettings) -> None:
        """``plane`` admits, batches, decides and accounts."""
        self._plane, self._cascade = plane, settings

    async def embed(self, ticket: Ticket, context: RequestContext, request: EmbeddingRequest) -> Embedded:
        """Answer an admitted request; see :class:`penstock.generation.plane.Embedder`."""
        hosted = self._plane.hosting.get(request.model, request.version)
        texts = _texts_of(hosted)
        embedding.check_count(request, self._plane.limits.max_rows_per_request)
        rows = await embedding.tokenized(texts, request)
        parameters = dict(request.parameters)
        is_flagged = self._stays_here(hosted, texts, rows) and not parameters.get("local_only")
        if is_flagged:
            parameters["local_only"] = True

        async def infer(inputs: Mapping[str, Array]) -> InferResponse:
            asked = InferRequest(
                model=request.model,
                version=request.version,
                inputs=inputs,
                outputs=(texts.output,),
                parameters=parameters,
            )
            return await self._plane.infer(ticket, context, asked)

        made = await embedding.embed(texts, rows, infer)
        account = joined(made.accounts)
        if is_flagged:
            account["reason"] = Reason.UNCERTIFIED.value
        return Embedded(vectors=made.vectors, prompt_tokens=made.tokens, account=account)

    def embedding_models(self) -> list[TextModel]:
        """List the models that can be asked now."""
        return [
            TextModel(
                name=hosted.plan.model,
                version=hosted.plan.version,
                context_tokens=hosted.arrays.embedding.spec.max_tokens,
            )
            for hosted in self._plane.hosting.hosted()
            if not hosted.is_text and hosted.arrays.embedding is not None
        ]

    def _stays_here(self, hosted: Hosted, texts: Embedding, rows: Sequence[TokenRow]) -> bool:
        if self._cascade.on_unreachable == "fail":  # answers without a promise are not wanted
            return False
        if hosted.mode is CascadeMode.ESCALATE_ALL:
            return True
        measured = texts.spec.measured_tokens
        return measured > 0 and any(len(row.ids) > measured for row in rows)


def joined(accounts: Sequence[Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """Sum up who answered the calls that a request became."""
    found: dict[str, Any] = dict(accounts[0])
    if len(accounts) == 1:
        return found
    served_by = {account.get("served_by") for account in accounts}
    if len(served_by) > 1:
        found["served_by"] = "mixed"
    reasons = {account.get("reason") for account in accounts}
    found["reason"] = next(one.value for one in reversed(Reason) if one.value in reasons)
    found["confidence"] = cascade.least([float(account["confidence"]) for account in accounts])
    found["rows_escalated"] = sum(int(account["rows_escalated"]) for account in accounts)
    return found


def _texts_of(hosted: Hosted) -> Embedding:
    if hosted.is_text:
        raise embedding.no_vectors(
            hosted.plan.model, "generates text; ask it at /v1/chat/completions or /v1/completions"
        )
    if hosted.arrays.embedding is None:
        raise embedding.no_vectors(hosted.plan.model)
    return hosted.arrays.embedding
