"""Loading and unloading over gRPC, as Triton's clients ask for it. Decodes, calls ``cloud_core.traffic``, encodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from google.protobuf.message import Message

from cloud_core.api.rpc.grpc_extensions import parse
from cloud_core.api.traffic import repository_call
from cloud_core.policy.admission import Tenant
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.policy.traffic import Traffic
from cloud_core.traffic.service import TrafficService
from penstock.policy.access import Action
from penstock.rpc.pb import oip_pb2 as pb
from penstock.wire.context import AUTHORIZATION


class Identify(Protocol):
    """Says who presents a credential; see :meth:`cloud_core.serving.dataplane.DataPlane.identify`."""

    def __call__(self, authorization: str, action: Action | None = None) -> Tenant: ...


Call = Callable[[bytes, Mapping[str, str]], Awaitable[Message]]
_Do = Callable[[str, str, Operator], Awaitable[Traffic]]


class RepositoryCalls:
    """``calls`` maps methods to what answers a request's bytes and its metadata."""

    def __init__(self, service: TrafficService, identify: Identify) -> None:
        self._service, self._identify = service, identify

    def calls(self) -> Mapping[str, Call]:
        """List the methods."""
        load, unload = self._service.load, self._service.unload
        return {
            "RepositoryModelLoad": self._handler(pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse, load),
            "RepositoryModelUnload": self._handler(
                pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse, unload
            ),
        }

    def _handler(self, kind: Any, answer: Callable[[], Message], do: _Do) -> Call:
        async def handle(data: bytes, headers: Mapping[str, str]) -> Message:
            tenant = self._identify(headers.get(AUTHORIZATION, ""), Action.OPERATE).name
            message = parse(kind, data)
            given = {name: _value(value) for name, value in message.parameters.items()}
            version, by = repository_call(given, tenant)
            # Triton's clients name the model in field 2; those of KServe have only one, the first
            await do(message.model_name or message.repository_name, version, by)
            return answer()

        return handle


def _value(value: Any) -> bool | int | float | str:
    chosen = value.WhichOneof("parameter_choice")
    found = getattr(value, chosen) if chosen else ""
    return found if isinstance(found, bool | int | float | str) else "bytes"
