"""The fleet service as operators use it: one client, errors of ours, and messages as plain data.

What devices send is ``edge_agent``'s; what the answers mean is ``cloud_core.policy``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import grpc

from penstock.rpc.channels import bearer, open_channel
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc
from penstock.rpc.status import error_from_rpc
from penstock.wire.addresses import located

ACTIVE_STATES = frozenset({"RUNNING", "PAUSED"})
"""Names of rollout states in which something may still happen by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Says who gives a command, by their own account, and why. A core with tenants adds whose credential it was."""

    who: str = ""
    reason: str = ""


NOBODY = Operator()


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
        """List all known devices whose labels match.

        Raises:
            PenstockError: what the core answered; Unavailable when it is out of reach.
        """
        page = self.page(selector)
        found = list(page.devices)
        while page.next_after:
            page = self.page(selector, after=page.next_after)
            found += page.devices
        return found

    def page(
        self, selector: Mapping[str, str] | None = None, *, after: str = "", limit: int = 0
    ) -> fleet_pb2.ListDevicesResponse:
        """List devices behind ``after``, at most ``limit``; 0 for as many as go into one answer. Raises as
        :meth:`devices`.
        """
        request = fleet_pb2.ListDevicesRequest(selector=dict(selector or {}), after=after, page_size=limit)
        page: fleet_pb2.ListDevicesResponse = self._call(self._stub.ListDevices, request)
        return page

    def groups(self, by: str, selector: Mapping[str, str] | None = None) -> list[fleet_pb2.DeviceGroup]:
        """Count devices by version, wave, phase, target or label:NAME. Raises as :meth:`devices`."""
        request = fleet_pb2.CountDevicesRequest(by=by, selector=dict(selector or {}))
        return list(self._call(self._stub.CountDevices, request).groups)

    def forget(self, device_id: str, by: Operator = NOBODY) -> None:
        """Forget a device that is gone. Raises as :meth:`devices`; Conflict while it still reports."""
        self._call(self._stub.ForgetDevice, fleet_pb2.ForgetDeviceRequest(device_id=device_id, **asdict(by)))

    def promises(self) -> list[fleet_pb2.FleetPromise]:
        """List what the audits of all devices say about each certificate in use. Raises as :meth:`devices`."""
        return list(self._call(self._stub.ListPromises, fleet_pb2.ListPromisesRequest()).promises)

    def plan(self, request: fleet_pb2.PlanRolloutRequest) -> fleet_pb2.RolloutPlan:
        """Freeze a plan. Raises as :meth:`devices`; Conflict when it would be empty."""
        plan: fleet_pb2.RolloutPlan = self._call(self._stub.PlanRollout, request)
        return plan

    def apply(self, rollout_id: str, plan_digest: str = "", by: Operator = NOBODY) -> fleet_pb2.Rollout:
        """Run a plan, if it is the one with ``plan_digest``. Raises as :meth:`devices`."""
        request = fleet_pb2.ApplyRolloutRequest(rollout_id=rollout_id, plan_digest=plan_digest, **asdict(by))
        return self._rollout(self._stub.ApplyRollout, request)

    def rollout(self, rollout_id: str = "", *, action: str = "") -> fleet_pb2.Rollout:
        """Return a rollout; for "" the newest that is under way, else the newest that was applied, or the one that
        ``action`` without a name is about. Raises as :meth:`devices`.
        """
        return self._rollout(self._stub.GetRollout, fleet_pb2.GetRolloutRequest(rollout_id=rollout_id, action=action))

    def rollouts(self, model: str = "") -> list[fleet_pb2.Rollout]:
        """List rollouts, oldest first. Raises as :meth:`devices`."""
        return list(self._call(self._stub.ListRollouts, fleet_pb2.ListRolloutsRequest(model=model)).rollouts)

    def pause(self, rollout_id: str = "", by: Operator = NOBODY) -> fleet_pb2.Rollout:
        """Release no further wave. Raises as :meth:`devices`."""
        return self._rollout(self._stub.PauseRollout, _on(rollout_id, by))

    def resume(
        self, rollout_id: str = "", by: Operator = NOBODY, *, accept: Sequence[str] = (), accept_all: bool = False
    ) -> fleet_pb2.Rollout:
        """Continue without the devices that are accepted by name. Raises as :meth:`devices`; Conflict while failures
        that nobody accepted hold it.
        """
        request = fleet_pb2.ResumeRolloutRequest(
            rollout_id=rollout_id, accept=accept, accept_all=accept_all, **asdict(by)
        )
        return self._rollout(self._stub.ResumeRollout, request)

    def abort(self, rollout_id: str = "", by: Operator = NOBODY, *, keep: bool = False) -> fleet_pb2.Rollout:
        """End it now; devices go back, or with ``keep`` each stays where it is. Raises as :meth:`devices`."""
        request = fleet_pb2.AbortRolloutRequest(rollout_id=rollout_id, keep=keep, **asdict(by))
        return self._rollout(self._stub.AbortRollout, request)

    def undo(self, rollout_id: str, by: Operator = NOBODY) -> fleet_pb2.Rollout:
        """Send every device back to what it ran before. Raises as :meth:`devices`."""
        return self._rollout(self._stub.UndoRollout, _on(rollout_id, by))

    def delete(self, rollout_id: str, by: Operator = NOBODY) -> fleet_pb2.Rollout:
        """Delete a plan that was not applied. Raises as :meth:`devices`; Conflict when it was."""
        return self._rollout(self._stub.DeletePlan, _on(rollout_id, by))

    def set_default(self, request: fleet_pb2.SetDefaultRequest) -> fleet_pb2.SetDefaultResponse:
        """Move what the core serves by default. Raises as :meth:`devices`; Conflict where devices run the model."""
        answer: fleet_pb2.SetDefaultResponse = self._call(self._stub.SetDefault, request)
        return answer

    def trust(self, request: fleet_pb2.TrustDeviceRequest) -> fleet_pb2.TrustDeviceResponse:
        """Let a device's audit begin without evidence. Raises as :meth:`devices`; NotFound where it has none."""
        answer: fleet_pb2.TrustDeviceResponse = self._call(self._stub.TrustDevice, request)
        return answer

    def actions(self) -> list[fleet_pb2.OperatorAction]:
        """List what operators did, oldest first. Raises as :meth:`devices`."""
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


def moment(at: float) -> str | None:
    """Write UNIX seconds as a date of ISO 8601 in UTC; None for 0, which is never, or unknown."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def as_data(message: Any) -> dict[str, Any]:
    """Return a message as plain data with its field names; enums by name, 64-bit integers as numbers, dates as text.

    (``google.protobuf.json_format`` writes integers as strings, and leaves out fields that are zero.)
    """
    return {field.name: _field_data(field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _field_data(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        dates = {name: moment(at) for name, at in value.items()} if _is_date(field) else value
        return dict(sorted(dates.items()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_value_data(field, item) for item in value]
    return _value_data(field, value)


def _value_data(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return as_data(value)
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return found.name if found else value
    return moment(value) if _is_date(field) else value


def _is_date(field: Any) -> bool:
    """Say whether a field holds UNIX seconds: by its name, as the .proto has them."""
    name: str = field.name
    return name == "at" or name.endswith(("_at", "_since"))


def _on(rollout_id: str, by: Operator) -> fleet_pb2.RolloutActionRequest:
    return fleet_pb2.RolloutActionRequest(rollout_id=rollout_id, **asdict(by))
