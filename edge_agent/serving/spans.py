"""Spans of a device's requests and of its calls to the cloud, so that a trace goes from an application to the core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import structs

from penstock.errors import outcome_code
from penstock.process.tracing import CLIENT, SERVER, SpanKind, Tracer, fail, traceparent_of
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse

Answer = Callable[[InferRequest, RequestContext], Awaitable[InferResponse]]

_TOLD = ("served_by", "reason", "confidence", "threshold", "certificate", "variant")


class Spans:
    """Makes a span around an answer where its request is traced."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def request(self, request: InferRequest, context: RequestContext, answer: Answer) -> InferResponse:
        """Answer a request of an application."""
        if not self._tracer.wants(context.traceparent):
            return await answer(request, context)
        return await self._around(f"infer {request.model}", SERVER, request, context, answer)

    async def escalation(self, request: InferRequest, context: RequestContext, answer: Answer) -> InferResponse:
        """Ask the cloud. Rows of several requests that share a call are in the trace of the first one."""
        if not context.traceparent or not self._tracer.wants(context.traceparent):
            return await answer(request, context)
        return await self._around(f"escalate {request.model}", CLIENT, request, context, answer)

    def close(self) -> None:
        """Send what waits; bounded in time."""
        self._tracer.close()

    async def _around(
        self, name: str, kind: SpanKind, request: InferRequest, context: RequestContext, answer: Answer
    ) -> InferResponse:
        span = self._tracer.begin(name, context.traceparent, kind)
        try:
            span.set_attribute("penstock.model", request.model)
            response = await answer(request, structs.replace(context, traceparent=traceparent_of(span)))
            for told in _TOLD:
                if (value := response.parameters.get(told)) not in (None, ""):
                    span.set_attribute(f"penstock.{told}", value)
            return response
        except BaseException as error:
            span.set_attribute("penstock.code", outcome_code(error))
            fail(span, outcome_code(error))
            raise
        finally:
            span.end()
