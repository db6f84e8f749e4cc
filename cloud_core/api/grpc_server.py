"""The gRPC listener: inference, fleet, health and reflection on one port; binds, starts, drains, stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud_core.api.grpc_oip import SERVICE, OipServicer
from cloud_core.serving.dataplane import DataPlane
from cloud_core.settings import GrpcSettings
from penstock.errors import ConfigError, PenstockError
from penstock.policy.access import Action
from penstock.rpc.channels import server_options
from penstock.rpc.metadata import headers_in
from penstock.rpc.pb import POOL, fleet_pb2_grpc
from penstock.rpc.status import abort
from penstock.wire.context import AUTHORIZATION

FLEET_SERVICE = "penstock.v1.Fleet"
_PENDING_HEALTH = (SERVICE, FLEET_SERVICE, "")

T = TypeVar("T")
if TYPE_CHECKING:  # generic in the stubs only
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Continue = Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]]


class GrpcServer:
    """One listening port. ``port`` is the one that was bound."""

    def __init__(self, server: grpc.aio.Server, statuses: Any, port: int) -> None:
        self._server, self._statuses, self.port = server, statuses, port

    @classmethod
    async def start(
        cls, plane: DataPlane, oip: OipServicer, fleet: fleet_pb2_grpc.FleetServicer, settings: GrpcSettings
    ) -> GrpcServer:
        """Listen; health answers NOT_SERVING until :meth:`set_serving`.

        Raises:
            ConfigError: the port is in use, or the address cannot be bound.
        """
        # without tenants nothing stands between a call and its handler: an interceptor costs every call
        interceptors = [_FleetCredentials(plane)] if plane.wants_credentials else None
        server = grpc.aio.server(
            options=server_options(max_message_bytes=settings.max_message_bytes), interceptors=interceptors
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, oip.handlers()),))
        fleet_pb2_grpc.add_FleetServicer_to_server(fleet, server)  # type: ignore[no-untyped-call]  # generated
        statuses = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
        names = (SERVICE, FLEET_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        pools: Any = TwoPools(POOL, descriptor_pool.Default())  # what reflection uses of a pool
        reflection.enable_server_reflection(names, server, pool=pools)
        port = _bound(server, settings.host, settings.port)
        started = cls(server, statuses, port)
        await started.set_serving(False)
        await server.start()
        return started

    async def set_serving(self, is_serving: bool) -> None:
        """Set what ``grpc.health.v1`` answers."""
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in _PENDING_HEALTH:
            await self._statuses.set(name, status)

    async def stop(self, timeout_s: float) -> None:
        """Take no more calls, give open ones ``timeout_s``, then cut them."""
        await self._server.stop(timeout_s)


class TwoPools:
    """A descriptor pool that looks in ours, then in the default one, which holds health and reflection.

    Reflection needs one pool; our messages live in a private one so that other OIP clients can be imported beside us.
    """

    def __init__(self, *pools: DescriptorPool) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802  # the pool's own interface
        return _first(self._pools, lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        return _first(self._pools, lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Descriptor:  # noqa: N802
        return _first(self._pools, lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:  # noqa: N802
        return _pool_of(message).FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:  # noqa: N802
        return _pool_of(message).FindAllExtensions(message)


def _first(pools: tuple[DescriptorPool, ...], find: Callable[[DescriptorPool], T]) -> T:
    for pool in pools[:-1]:
        try:
            return find(pool)
        except KeyError:
            continue
    return find(pools[-1])  # whose KeyError is the answer


def _pool_of(message: Descriptor) -> DescriptorPool:
    return message.file.pool


_OF_DEVICES = frozenset({"Heartbeat", "DeliverOutcomes"})


class _FleetCredentials(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets only known credentials reach the fleet service. Inference checks by itself, with the tenant it needs."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def intercept_service(self, continuation: _Continue, details: grpc.HandlerCallDetails) -> _Handler:
        if details.method.startswith(f"/{FLEET_SERVICE}/"):
            headers = headers_in(details.invocation_metadata)
            try:
                is_report = details.method.rpartition("/")[2] in _OF_DEVICES
                action = Action.REPORT if is_report else Action.OPERATE
                self._plane.authenticate(headers.get(AUTHORIZATION, ""), action)
            except PenstockError as error:
                return _refusing(error)
        return await continuation(details)


def _refusing(error: PenstockError) -> _Handler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await abort(context, error)

    return grpc.unary_unary_rpc_method_handler(refuse)


def _bound(server: grpc.aio.Server, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:  # all that the library says is that it failed
        raise ConfigError(
            f"grpc: cannot listen on {address}; most likely the port is in use: stop what uses it, or choose another "
            "--grpc-port"
        ) from error
