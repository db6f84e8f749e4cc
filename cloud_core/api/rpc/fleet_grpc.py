"""``penstock.v1.Fleet`` over gRPC: decode, call the service, encode. Errors become statuses in one place."""

# ruff: noqa: N802  # methods have the names of the .proto
from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Protocol, TypeVar

from cloud_core.api.rpc import fleet_codec as codec
from cloud_core.api.rpc.listening.methods import Call
from cloud_core.fleet.fleet_views import MAX_PAGE
from cloud_core.fleet.service import FleetService
from cloud_core.policy.admission import ANYBODY, Tenant
from cloud_core.policy.rollouts.rollout import Operator
from penstock.errors import Internal, PenstockError
from penstock.policy.access import Action
from penstock.process.telemetry import log
from penstock.rpc.metadata import callers_headers
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.rpc.pb import fleet_pb2_grpc
from penstock.rpc.status import abort
from penstock.wire.context import AUTHORIZATION

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")
_Context = Call
_Method = Callable[["FleetServicer", Request, _Context], Awaitable[Reply]]


def _statuses(method: _Method[Request, Reply]) -> _Method[Request, Reply]:
    """Turn errors of ours into gRPC statuses, and anything else into INTERNAL without its text."""

    @functools.wraps(method)
    async def call(self: FleetServicer, request: Request, context: _Context) -> Reply:
        try:
            return await method(self, request, context)
        except PenstockError as error:
            await abort(context, error)
        except Exception as error:
            log(_log, logging.ERROR, "fleet request failed", exc_info=error, method=method.__name__)
            await abort(context, Internal("the fleet service failed on this request; the core's log says why"))

    return call


class Identify(Protocol):
    """Says who presents a credential; see :meth:`cloud_core.serving.dataplane.DataPlane.identify`."""

    def __call__(self, authorization: str, action: Action | None = None, *, device_id: str | None = None) -> Tenant: ...


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    """The service's methods, one line each."""

    def __init__(
        self,
        service: FleetService,
        identify: Identify = lambda authorization, action=None, **_: ANYBODY,
        *,
        takes_certificates: bool = False,
    ) -> None:
        """
        Args:
            identify: says whose a credential is, and raises where it may not do what is asked.
            takes_certificates: who sends no credential is known by a certificate.
        """
        self._service, self._identify, self._takes_certificates = service, identify, takes_certificates

    def _credential(self, context: _Context) -> str:
        return callers_headers(context, takes_certificates=self._takes_certificates).get(AUTHORIZATION, "")

    def _check(self, context: _Context, device_id: str) -> None:
        self._identify(self._credential(context), device_id=device_id)

    def _by(self, request: codec.Commanded, context: _Context) -> Operator:
        """Return who gives a command; what they say of themselves is beside what their credential says."""
        by = self._identify(self._credential(context), Action.OPERATE)
        return codec.decode_operator(request, by.name)

    @_statuses
    async def Heartbeat(self, request: pb.HeartbeatRequest, context: _Context) -> pb.HeartbeatResponse:
        self._check(context, request.device_id)
        return codec.encode_reply(await self._service.heartbeat(codec.decode_report(request)))

    @_statuses
    async def DeliverOutcomes(
        self, request: pb.DeliverOutcomesRequest, context: _Context
    ) -> pb.DeliverOutcomesResponse:
        self._check(context, request.device_id)
        records = codec.decode_records(request)
        sequence = await self._service.deliver_outcomes(request.device_id, records, instance=request.instance)
        return pb.DeliverOutcomesResponse(durable_sequence=sequence)

    @_statuses
    async def ListDevices(self, request: pb.ListDevicesRequest, context: _Context) -> pb.ListDevicesResponse:
        limit = request.page_size or MAX_PAGE
        return codec.encode_page(self._service.views.page(dict(request.selector), after=request.after, limit=limit))

    @_statuses
    async def CountDevices(self, request: pb.CountDevicesRequest, context: _Context) -> pb.CountDevicesResponse:
        found = self._service.views.groups(request.by, dict(request.selector), request.model)
        return pb.CountDevicesResponse(groups=[codec.encode_group(group) for group in found])

    @_statuses
    async def ForgetDevice(self, request: pb.ForgetDeviceRequest, context: _Context) -> pb.ForgetDeviceResponse:
        await self._service.actions.forget(request.device_id, self._by(request, context))
        return pb.ForgetDeviceResponse(device_id=request.device_id)

    @_statuses
    async def ListPromises(self, request: pb.ListPromisesRequest, context: _Context) -> pb.ListPromisesResponse:
        return pb.ListPromisesResponse(promises=[codec.encode_promise(one) for one in self._service.promises()])

    @_statuses
    async def PlanRollout(self, request: pb.PlanRolloutRequest, context: _Context) -> pb.RolloutPlan:
        asked = codec.decode_plan_request(request, self._service.settings.gate)
        return codec.encode_plan(await self._service.plan(asked, self._by(request, context)))

    @_statuses
    async def ApplyRollout(self, request: pb.ApplyRolloutRequest, context: _Context) -> pb.Rollout:
        by = self._by(request, context)
        return codec.encode_rollout(await self._service.apply(request.rollout_id, request.plan_digest, by))

    @_statuses
    async def GetRollout(self, request: pb.GetRolloutRequest, context: _Context) -> pb.Rollout:
        return codec.encode_rollout(self._service.rollout(request.rollout_id, codec.decode_action(request.action)))

    @_statuses
    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: _Context) -> pb.ListRolloutsResponse:
        found = self._service.rollouts(request.model)
        return pb.ListRolloutsResponse(rollouts=[codec.encode_rollout(rollout) for rollout in found])

    @_statuses
    async def PauseRollout(self, request: pb.RolloutActionRequest, context: _Context) -> pb.Rollout:
        return codec.encode_rollout(await self._service.pause(request.rollout_id, self._by(request, context)))

    @_statuses
    async def ResumeRollout(self, request: pb.ResumeRolloutRequest, context: _Context) -> pb.Rollout:
        accept = None if request.accept_all else frozenset(request.accept)
        by = self._by(request, context)
        return codec.encode_rollout(await self._service.resume(request.rollout_id, by, accept=accept))

    @_statuses
    async def AbortRollout(self, request: pb.AbortRolloutRequest, context: _Context) -> pb.Rollout:
        by = self._by(request, context)
        return codec.encode_rollout(await self._service.abort(request.rollout_id, by, keep=request.keep))

    @_statuses
    async def SetDefault(self, request: pb.SetDefaultRequest, context: _Context) -> pb.SetDefaultResponse:
        version, previous = await self._service.actions.set_default(
            request.model, request.version, self._by(request, context)
        )
        return pb.SetDefaultResponse(
            model=version.model,
            version=version.tag or request.version,
            artifact_digest=version.digest,
            previous_digest=previous,
        )

    @_statuses
    async def TrustDevice(self, request: pb.TrustDeviceRequest, context: _Context) -> pb.TrustDeviceResponse:
        found = await self._service.actions.trust(request.device_id, request.model, self._by(request, context))
        return codec.encode_trusted(request.device_id, found)

    @_statuses
    async def ListActions(self, request: pb.ListActionsRequest, context: _Context) -> pb.ListActionsResponse:
        return pb.ListActionsResponse(
            actions=[pb.OperatorAction(**asdict(one)) for one in self._service.actions.done()]
        )

    @_statuses
    async def UndoRollout(self, request: pb.RolloutActionRequest, context: _Context) -> pb.Rollout:
        return codec.encode_rollout(await self._service.undo(request.rollout_id, self._by(request, context)))

    @_statuses
    async def DeletePlan(self, request: pb.RolloutActionRequest, context: _Context) -> pb.Rollout:
        return codec.encode_rollout(await self._service.delete(request.rollout_id, self._by(request, context)))
