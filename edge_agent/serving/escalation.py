"""The cloud as the data path sees it: one channel, a queue for each model version, and the row budget they share.

Any server that speaks the Open Inference Protocol over gRPC will do. What happens to rows in a queue is
``edge_agent.serving.escalation_queue``; whether rows may go up is decided by ``policy.egress`` from the numbers that
this module keeps.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

import grpc

from edge_agent.serving.escalation_queue import EscalationQueue, is_patient
from edge_agent.serving.hosting import Hosted
from edge_agent.settings import EscalationSettings, LinkSettings
from penstock.errors import DeadlineExceeded
from penstock.policy.token_bucket import TokenBucket
from penstock.process import telemetry
from penstock.rpc import channels, codec
from penstock.rpc.pb import oip_pb2
from penstock.rpc.status import error_from_rpc
from penstock.wire.context import RequestContext, headers_of
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tls import Tls

if TYPE_CHECKING:
    from edge_agent.serving.spans import Spans

_LOG = logging.getLogger(__name__)


class Escalator:
    """The channel to the cloud, its queues, and the row budget that they share."""

    def __init__(
        self,
        target: str,
        settings: EscalationSettings,
        *,
        token: str = "",
        tls: Tls | None = None,
        link: LinkSettings | None = None,
        spans: Spans | None = None,
    ) -> None:
        """
        Args:
            token: where the cloud has tenants.
            tls: which authorities to trust over TLS; None for what the environment says.
            spans: traces calls; None traces none.

        Raises:
            InvalidInput: ``target`` is neither ``grpc://host:port`` nor ``grpcs://host``.
        """
        self.settings = settings
        self.spans = spans
        self.sent_bytes = 0
        self.sent_rows = 0
        self.calls = 0
        self.failed_calls = 0
        self._loop = asyncio.get_running_loop()
        link = link or LinkSettings()
        self._link = channels.RenewedChannel(
            target, keepalive_s=link.keepalive_s, renew_after=link.renew_after, grace_s=settings.timeout_s, tls=tls
        )
        self._credential = channels.bearer(token)
        self._queues: dict[Hosted, EscalationQueue] = {}
        self._bucket = (
            TokenBucket(rate=settings.rate_rows_per_s, burst=settings.burst_rows) if settings.rate_rows_per_s else None
        )
        self._tokens = self._bucket.full(self._loop.time()) if self._bucket else None

    def queue_of(self, hosted: Hosted) -> EscalationQueue:
        """Return the queue for what this model escalates."""
        queue = self._queues.get(hosted)
        if queue is None:
            self._queues = {key: old for key, old in self._queues.items() if not (key.is_retired and old.is_idle)}
            queue = self._queues[hosted] = EscalationQueue(self, hosted, self.settings)
        return queue

    @property
    def is_reachable(self) -> bool:
        """Say whether the cloud can be asked: no when a model that answers cannot reach it; yes before any try."""
        return all(queue.is_reachable for hosted, queue in self._queues.items() if not hosted.is_retired)

    def free_tokens(self) -> float:
        """Rows that the budget allows now; infinite without one."""
        if self._bucket is None or self._tokens is None:
            return math.inf
        self._tokens, _ = self._bucket.take(self._tokens, 0, self._loop.time())
        return self._tokens.tokens

    def take_tokens(self, rows: int) -> None:
        """Spend the budget for rows that were permitted."""
        if self._bucket is not None and self._tokens is not None:
            self._tokens, _ = self._bucket.take(self._tokens, rows, self._loop.time())

    async def infer(self, request: InferRequest, context: RequestContext) -> InferResponse:
        """Ask the cloud once, under the id and the trace of the request that it is made for.

        Raises:
            PenstockError: the call failed (see the status table of ``penstock.rpc``), or the answer is none.
        """
        if self.spans is not None:
            return await self.spans.escalation(request, context, self._call)
        return await self._call(request, context)

    async def _call(self, request: InferRequest, context: RequestContext) -> InferResponse:
        message = codec.encode_request(request)
        self.calls += 1
        self.sent_bytes += message.ByteSize()
        self.sent_rows += len(next(iter(request.inputs.values())))
        channel = self._link.channel
        timeout_s = context.deadline - self._loop.time()
        try:
            reply: oip_pb2.ModelInferResponse = await channels.oip_stub(channel).ModelInfer(
                message,
                timeout=timeout_s,
                metadata=(*self._credential, *headers_of(context).items()),
            )
        except grpc.RpcError as error:
            self.failed_calls += 1
            failure = error_from_rpc(error)
            is_late = isinstance(failure, DeadlineExceeded)
            if not is_late or is_patient(timeout_s, self.settings):
                self._record(channel, is_late=is_late)
            raise failure from error
        self._record(channel, is_late=False)
        return codec.decode_response(reply)

    async def is_model_ready(self, model: str, version: str) -> bool:
        """Can the cloud serve this model now? False also when it cannot be asked."""
        channel = self._link.channel
        request = oip_pb2.ModelReadyRequest(name=model, version=version)
        try:
            reply = await channels.oip_stub(channel).ModelReady(
                request, timeout=self.settings.timeout_s, metadata=self._credential
            )
        except grpc.RpcError as error:
            self._record(channel, is_late=isinstance(error_from_rpc(error), DeadlineExceeded))
            return False
        self._record(channel, is_late=False)
        return bool(reply.ready)

    async def close(self) -> None:
        """Give up what is under way and close the channel."""
        for queue in self._queues.values():
            await queue.close()
        await self._link.close()

    def _record(self, channel: grpc.aio.Channel, *, is_late: bool) -> None:
        if self._link.record(channel, is_late=is_late):
            telemetry.log(_LOG, logging.WARNING, "calls to the cloud got no answer in time: a new connection is made")
