"""The connection to the fleet service: two calls, whose errors are ours. The device always dials (invariant 1)."""

from __future__ import annotations

import grpc

from penstock.rpc import channels
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc
from penstock.rpc.status import error_from_rpc


class FleetLink:
    """Calls the fleet service over one channel."""

    def __init__(self, target: str, *, timeout_s: float, token: str = "") -> None:
        """Open the channel; nothing is dialled before the first call.

        Args:
            target: ``grpc://host:port``.
            timeout_s: longest wait for each call.
            token: credential, where the core has tenants.

        Raises:
            InvalidInput: ``target`` is not ``grpc://host:port``.
        """
        self._channel = channels.open_channel(target, aio=True)
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._timeout_s = timeout_s
        self._credential = channels.bearer(token)

    async def heartbeat(self, request: fleet_pb2.HeartbeatRequest) -> fleet_pb2.HeartbeatResponse:
        """Send what is true of this device; return what should be.

        Raises:
            PenstockError: the service is out of reach, or refuses.
        """
        try:
            response: fleet_pb2.HeartbeatResponse = await self._stub.Heartbeat(
                request, timeout=self._timeout_s, metadata=self._credential
            )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return response

    async def deliver(self, request: fleet_pb2.DeliverOutcomesRequest) -> int:
        """Deliver records; return the highest sequence that is durable over there.

        Raises:
            PenstockError: the service is out of reach, or refuses.
        """
        try:
            response = await self._stub.DeliverOutcomes(request, timeout=self._timeout_s, metadata=self._credential)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return int(response.durable_sequence)

    async def close(self) -> None:
        """Close the channel; calls that are under way fail."""
        await self._channel.close(grace=None)
