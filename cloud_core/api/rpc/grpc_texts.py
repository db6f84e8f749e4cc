"""Texts over gRPC, by Triton's convention for decoupled models: one request, as many responses as the answer has parts.

Decodes the tensors of a request for a text, calls the text plane, encodes what comes. Who may ask, and in which order
answers leave, is ``cloud_core.api.rpc.grpc_oip``'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from cloud_core.serving.dataplane import Ticket
from cloud_core.serving.served_text import ServedText
from cloud_core.serving.texts import TextPlane
from penstock.errors import InvalidInput
from penstock.generation.plane import TextAnswer
from penstock.generation.values import TokenEvent
from penstock.openai.answers import broken_off
from penstock.openai.field_names import named
from penstock.openai.oip_texts import TextAsk, Told, read_tensors, text_parameters, text_tensors
from penstock.rpc import codec
from penstock.rpc.codec import DecodedRequest
from penstock.rpc.pb import oip_pb2 as pb
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferResponse

Say = Callable[[pb.ModelInferResponse], Awaitable[None]]
"""Sends a response that others follow; waits while the client does not read."""


def is_text(ticket: Ticket) -> bool:
    """Say whether an admitted request is for a model that generates."""
    return isinstance(ticket.route.served, ServedText)


async def answer_text(
    texts: TextPlane, ticket: Ticket, context: RequestContext, decoded: DecodedRequest, say: Say | None
) -> pb.ModelInferResponse:
    """Answer an admitted request for a text, and return its last response: the only one where ``say`` is None, or
    where the request asks for a whole answer.

    Raises:
        InvalidInput: inputs, outputs or parameters are wrong, or parts are asked for where one response is possible.
        Others: as :meth:`TextPlane.generate`, and what goes wrong while tokens are made.
    """
    ask = read_tensors(decoded.request)
    if ask.is_stream and say is None:
        raise InvalidInput(
            "streaming: ModelInfer has one response for a request; ask for parts by ModelStreamInfer", field="streaming"
        )
    with named(ask.names):
        return await _answered(texts, ticket, context.with_parameters(ask.request.parameters), decoded, ask, say)


async def _answered(
    texts: TextPlane, ticket: Ticket, context: RequestContext, decoded: DecodedRequest, ask: TextAsk, say: Say | None
) -> pb.ModelInferResponse:
    answer = await texts.generate(ticket, context, ask.request)
    version = ticket.route.version
    encode = partial(_encoded, ask, answer, decoded, version=version.tag or version.digest)
    last: list[TokenEvent] = []
    async with aclosing(answer.events):
        async for event in answer.events:
            last.append(event)
            if say is not None and ask.is_stream is not False and event.finish is None:
                await say(encode(last))
                last = []
    if not last or last[-1].finish is None:
        raise broken_off()
    return encode(last)


def _encoded(
    ask: TextAsk, answer: TextAnswer, decoded: DecodedRequest, events: Sequence[TokenEvent], *, version: str
) -> pb.ModelInferResponse:
    told = Told(events=events, version=version, token_bytes=answer.token_bytes, account=answer.account)
    response = InferResponse(
        model=ask.request.model,
        version=version,
        outputs=text_tensors(ask, told),
        parameters=text_parameters(ask, told),
    )
    return codec.encode_response(response, decoded)
