"""The fleet service as operators use it: one client, errors of ours, and messages as plain data.

What devices send is ``edge_agent``'s; what the answers mean is ``cloud_core.policy``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from penstock.rpc.channels import bearer, open_channel
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc
from penstock.rpc.status import error_from_rpc
from penstock.wire.addresses import located

ACTIVE_STATES = frozenset({"RUNNING", "PAUSED"})
"""Names of rollout states in which something may still happen by itself."""


class FleetClient:
    """Synchronous client of one core's fleet service."""

    def __init__(self, target: str, *, timeout_s: float = 10.0, token: str = "") -> None:
        """
        Args:
            target: ``grpc://host:port``.
            timeout_s: of each call.
            token: where the core has tenants.

        Raises:
            InvalidInput: not such a target.
        """
        self._target = target
        self._channel = open_channel(target, aio=False)
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._timeout_s = timeout_s
        self._metadata = bearer(token)

    def __enter__(self) -> FleetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def devices(self, selector: Mapping[str, str] | None = None) -> list[fleet_pb2.Device]:
        """List known devices whose labels match.

        Raises:
            PenstockError: what the core answered; Unavailable when it is out of reach.
        """
        request = fleet_pb2.ListDevicesRequest(selector=dict(selector or {}))
        return list(self._call(self._stub.ListDevices, request).devices)

    def promises(self) -> list[fleet_pb2.FleetPromise]:
        """List what the audits of all devices say about each certificate in use. Raises as :meth:`devices`."""
        return list(self._call(self._stub.ListPromises, fleet_pb2.ListPromisesRequest()).promises)

    def plan(self, request: fleet_pb2.PlanRolloutRequest) -> fleet_pb2.RolloutPlan:
        """Freeze a plan. Raises as :meth:`devices`; Conflict when it would be empty."""
        plan: fleet_pb2.RolloutPlan = self._call(self._stub.PlanRollout, request)
        return plan

    def apply(self, rollout_id: str, plan_digest: str = "") -> fleet_pb2.Rollout:
        """Run a plan, if it is the one with ``plan_digest``. Raises as :meth:`devices`."""
        return self._rollout(
            self._stub.ApplyRollout, fleet_pb2.ApplyRolloutRequest(rollout_id=rollout_id, plan_digest=plan_digest)
        )

    def rollout(self, rollout_id: str = "") -> fleet_pb2.Rollout:
        """Return a rollout; the newest for "". Raises as :meth:`devices`."""
        return self._rollout(self._stub.GetRollout, fleet_pb2.GetRolloutRequest(rollout_id=rollout_id))

    def rollouts(self, model: str = "") -> list[fleet_pb2.Rollout]:
        """List rollouts, oldest first. Raises as :meth:`devices`."""
        return list(self._call(self._stub.ListRollouts, fleet_pb2.ListRolloutsRequest(model=model)).rollouts)

    def pause(self, rollout_id: str = "") -> fleet_pb2.Rollout:
        """Release no further wave. Raises as :meth:`devices`."""
        return self._rollout(self._stub.PauseRollout, fleet_pb2.RolloutActionRequest(rollout_id=rollout_id))

    def resume(self, rollout_id: str = "") -> fleet_pb2.Rollout:
        """Continue, accepting the failures seen so far. Raises as :meth:`devices`."""
        return self._rollout(self._stub.ResumeRollout, fleet_pb2.RolloutActionRequest(rollout_id=rollout_id))

    def abort(self, rollout_id: str = "", *, keep: bool = False) -> fleet_pb2.Rollout:
        """End it now; devices go back unless ``keep``. Raises as :meth:`devices`."""
        return self._rollout(self._stub.AbortRollout, fleet_pb2.AbortRolloutRequest(rollout_id=rollout_id, keep=keep))

    def undo(self, rollout_id: str = "") -> fleet_pb2.Rollout:
        """Send every device back to what it ran before. Raises as :meth:`devices`."""
        return self._rollout(self._stub.UndoRollout, fleet_pb2.RolloutActionRequest(rollout_id=rollout_id))

    def set_default(self, request: fleet_pb2.SetDefaultRequest) -> fleet_pb2.SetDefaultResponse:
        """Move what the core serves by default. Raises as :meth:`devices`; Conflict where devices run the model."""
        answer: fleet_pb2.SetDefaultResponse = self._call(self._stub.SetDefault, request)
        return answer

    def trust(self, request: fleet_pb2.TrustDeviceRequest) -> fleet_pb2.TrustDeviceResponse:
        """Let a device's audit begin without evidence. Raises as :meth:`devices`; NotFound where it has none."""
        answer: fleet_pb2.TrustDeviceResponse = self._call(self._stub.TrustDevice, request)
        return answer

    def actions(self) -> list[fleet_pb2.OperatorAction]:
        """List what operators did beside rollouts, oldest first. Raises as :meth:`devices`."""
        return list(self._call(self._stub.ListActions, fleet_pb2.ListActionsRequest()).actions)

    def _rollout(self, method: Callable[..., Any], request: Any) -> fleet_pb2.Rollout:
        rollout: fleet_pb2.Rollout = self._call(method, request)
        return rollout

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise located(error_from_rpc(error), self._target) from error


def state_name(rollout: fleet_pb2.Rollout) -> str:
    """Return ``RUNNING``, or whatever the state is called."""
    return fleet_pb2.RolloutState.Name(rollout.state)


def as_data(message: Any) -> dict[str, Any]:
    """Return a message as plain data with its field names; enums by name, 64-bit integers as numbers.

    (``google.protobuf.json_format`` writes them as strings, and leaves out fields that are zero.)
    """
    return {field.name: _field_data(field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _field_data(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_value_data(field, item) for item in value]
    return _value_data(field, value)


def _value_data(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return as_data(value)
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return found.name if found else value
    return value
