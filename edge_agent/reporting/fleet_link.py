"""The connection to the fleet service: two calls, whose errors are ours. The device always dials (invariant 1)."""

from __future__ import annotations

import logging

import grpc

from edge_agent.settings import LinkSettings
from penstock.errors import DeadlineExceeded, PenstockError
from penstock.process import telemetry
from penstock.rpc import channels
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc
from penstock.rpc.status import error_from_rpc
from penstock.wire.tls import Tls

_LOG = logging.getLogger(__name__)


class FleetLink:
    """Calls the fleet service over one channel at a time."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float,
        token: str = "",
        tls: Tls | None = None,
        link: LinkSettings | None = None,
    ) -> None:
        """Open the channel; nothing is dialled before the first call.

        Args:
            target: ``grpc://host:port``, or ``grpcs://host`` over TLS.
            timeout_s: longest wait for each call.
            token: credential, where the core has tenants.
            tls: which authorities to trust over TLS; None for what the environment says.
            link: when a connection is looked at and given up; None for the defaults.

        Raises:
            InvalidInput: ``target`` is neither ``grpc://host:port`` nor ``grpcs://host``.
        """
        link = link or LinkSettings()
        self._link = channels.RenewedChannel(
            target, keepalive_s=link.keepalive_s, renew_after=link.renew_after, grace_s=timeout_s, tls=tls
        )
        self._timeout_s = timeout_s
        self._credential = channels.bearer(token)

    async def heartbeat(self, request: fleet_pb2.HeartbeatRequest) -> fleet_pb2.HeartbeatResponse:
        """Send what is true of this device; return what should be.

        Raises:
            PenstockError: the service is out of reach, or refuses.
        """
        channel = self._link.channel
        try:
            response: fleet_pb2.HeartbeatResponse = await _stub(channel).Heartbeat(
                request, timeout=self._timeout_s, metadata=self._credential
            )
        except grpc.RpcError as error:
            raise self._failed(channel, error) from error
        self._link.record(channel, is_late=False)
        return response

    async def deliver(self, request: fleet_pb2.DeliverOutcomesRequest) -> int:
        """Deliver records; return the highest sequence that is durable over there.

        Raises:
            PenstockError: the service is out of reach, or refuses.
        """
        channel = self._link.channel
        try:
            response = await _stub(channel).DeliverOutcomes(request, timeout=self._timeout_s, metadata=self._credential)
        except grpc.RpcError as error:
            raise self._failed(channel, error) from error
        self._link.record(channel, is_late=False)
        return int(response.durable_sequence)

    async def close(self) -> None:
        """Close the channel; calls that are under way fail."""
        await self._link.close()

    def _failed(self, channel: grpc.aio.Channel, rpc_error: grpc.RpcError) -> PenstockError:
        error = error_from_rpc(rpc_error)
        if self._link.record(channel, is_late=isinstance(error, DeadlineExceeded)):
            telemetry.log(_LOG, logging.WARNING, "calls to the core got no answer in time: a new connection is made")
        return error


def _stub(channel: grpc.aio.Channel) -> fleet_pb2_grpc.FleetStub:
    return fleet_pb2_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]  # generated
