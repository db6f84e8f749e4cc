"""The gRPC listener: inference, fleet, health and reflection on one port, behind whichever server suits.

Makes the table of services and chooses who listens; what speaks HTTP/2 is in ``cloud_core.api.rpc.listening``. Another
service is another row of :func:`_services`; another method of the inference protocol is a row of
:meth:`OipServicer.service`.
"""

from __future__ import annotations

import importlib.util
import logging
import mmap
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from grpc_health.v1 import health_pb2_grpc

from cloud_core.api.rpc.grpc_oip import SERVICE, OipServicer
from cloud_core.api.rpc.listening import health
from cloud_core.api.rpc.listening.grpcio_listener import GrpcioListener
from cloud_core.api.rpc.listening.health import Health
from cloud_core.api.rpc.listening.methods import Call, Service, Unary, service_of
from cloud_core.api.rpc.listening.reflection import reflection_services
from cloud_core.api.rpc.listening.settings import GrpcSettings
from cloud_core.policy.listeners import LARGEST_MESSAGE_BYTES, Surroundings, choose_server
from cloud_core.serving.dataplane import DataPlane
from cloud_core.settings import is_loopback
from penstock.errors import ConfigError, PenstockError
from penstock.policy.access import Action
from penstock.process.telemetry import log
from penstock.rpc.metadata import callers_headers
from penstock.rpc.pb import fleet_pb2_grpc
from penstock.rpc.status import abort
from penstock.wire.context import AUTHORIZATION
from penstock.wire.server_tls import ServerCertificates

_log = logging.getLogger(__name__)
FLEET_SERVICE = "penstock.v1.Fleet"


class Listener(Protocol):
    """One listening port over a table of services."""

    port: int

    async def start(self) -> None:
        """Take calls from now on."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Give open calls ``timeout_s``, then cut them."""
        ...


class GrpcServer:
    """One listening port. ``port`` is the one that was bound, ``server`` the implementation behind it."""

    def __init__(self, listener: Listener, health: Health, server: str) -> None:
        self._listener, self._health, self.server = listener, health, server
        self.port = listener.port

    @classmethod
    async def start(
        cls,
        plane: DataPlane,
        oip: OipServicer,
        fleet: fleet_pb2_grpc.FleetServicer,
        settings: GrpcSettings,
        certificates: ServerCertificates | None = None,
    ) -> GrpcServer:
        """Listen, in the clear or with certificates; health answers NOT_SERVING until :meth:`set_serving`.

        Raises:
            ConfigError: the port is in use, the address cannot be bound, or ``grpc.server`` cannot be had.
        """
        states = Health((SERVICE, FLEET_SERVICE, ""))
        services = _services(plane, oip, fleet, states)
        listener, server = _listener(services, settings, certificates)
        await listener.start()
        return cls(listener, states, server)

    async def set_serving(self, is_serving: bool) -> None:
        """Set what ``grpc.health.v1`` answers."""
        self._health.set(is_serving)

    async def stop(self, timeout_s: float) -> None:
        """Take no more calls, give open ones ``timeout_s``, then cut them."""
        await self._listener.stop(timeout_s)


def _services(
    plane: DataPlane, oip: OipServicer, fleet: fleet_pb2_grpc.FleetServicer, states: Health
) -> tuple[Service, ...]:
    devices = service_of(fleet_pb2_grpc.add_FleetServicer_to_server, fleet)
    guarded = {name: _with_credential(plane, name, call) for name, call in devices.unary.items()}
    return (
        oip.service(),
        Service(name=FLEET_SERVICE, unary=guarded),
        service_of(health_pb2_grpc.add_HealthServicer_to_server, states),
        *reflection_services((SERVICE, FLEET_SERVICE, health.NAME)),
    )


def _listener(
    services: Sequence[Service], settings: GrpcSettings, certificates: ServerCertificates | None
) -> tuple[Listener, str]:
    is_installed = importlib.util.find_spec("pygrpc_native") is not None
    around = Surroundings(
        is_installed=is_installed,
        has_tls=certificates is not None,
        is_loopback=is_loopback(settings.host),
        max_connections=settings.max_connections,
        can_reserve=is_installed and _can_reserve(LARGEST_MESSAGE_BYTES),
        has_directory=is_installed and _has_directory(),
    )
    try:
        server, why = choose_server(settings.server, around)
    except ValueError as problem:
        raise ConfigError(f"grpc.server: {problem}; set it to auto, or to grpcio") from None
    log(_log, logging.DEBUG, "gRPC server chosen", server=server, why=why)
    if server == "grpcio":
        return GrpcioListener(services, settings, certificates), server
    from cloud_core.api.rpc.listening.native_listener import NativeListener  # an extra

    return NativeListener(services, settings), server


def _can_reserve(size_bytes: int) -> bool:
    """Say whether so much address space can be had, by having it: limits, memory and the kernel's rule all count."""
    try:
        mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _has_directory() -> bool:
    """Say whether temporary files can be made, by making one: a full disk must not keep the core from serving."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


_OF_DEVICES = frozenset({"Heartbeat", "DeliverOutcomes"})


def _with_credential(plane: DataPlane, name: str, call: Unary) -> Unary:
    """Let only known credentials reach a method of the fleet service, before its message is parsed. Inference checks
    by itself, with the tenant it needs.
    """
    authenticate = partial(plane.authenticate, action=Action.REPORT if name in _OF_DEVICES else Action.OPERATE)

    async def guarded(data: bytes, context: Call) -> bytes:
        try:
            headers = callers_headers(context, takes_certificates=plane.takes_certificates)
            authenticate(headers.get(AUTHORIZATION, ""))
        except PenstockError as error:
            await abort(context, error)
        return await call(data, context)

    return guarded
