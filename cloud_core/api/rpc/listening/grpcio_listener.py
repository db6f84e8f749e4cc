"""grpcio's server: serves everything, and TLS; a third as fast as the native one for calls with one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from cloud_core.api.rpc.listening.methods import Service
from cloud_core.api.rpc.listening.settings import GrpcSettings
from penstock.errors import ConfigError
from penstock.rpc.channels import server_options
from penstock.wire.server_tls import Pem, ServerCertificates

_ANY = 2**31 - 1


class GrpcioListener:
    """One port of ``grpc.aio.server``. ``port`` is the bound one."""

    def __init__(
        self, services: Sequence[Service], settings: GrpcSettings, certificates: ServerCertificates | None = None
    ) -> None:
        """Bind; :meth:`start` takes calls.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._server = server_of(services, settings)
        self.port = _bound(self._server, settings.host, settings.port, certificates)

    async def start(self) -> None:
        """Take calls from now on."""
        await self._server.start()

    async def stop(self, timeout_s: float) -> None:
        """Take no more calls, give open ones ``timeout_s``, then cut them."""
        await self._server.stop(timeout_s)


def server_of(services: Sequence[Service], settings: GrpcSettings) -> grpc.aio.Server:
    """Make a server of these services that listens nowhere yet."""
    options = server_options(max_message_bytes=settings.max_message_bytes)
    server = grpc.aio.server(options=[*options, *_limits(settings)])
    for service in services:
        handlers = {
            **{name: grpc.unary_unary_rpc_method_handler(call) for name, call in service.unary.items()},
            **service.streams,
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
    return server


def _limits(settings: GrpcSettings) -> list[tuple[str, Any]]:
    options = [
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        (
            "grpc.http2.ping_timeout_ms",
            int(settings.keepalive_timeout_s * 1000),
        ),  # a minute otherwise, whatever that says
        ("grpc.http2.max_pings_without_data", 0),  # as many as it takes
    ]
    # calls that Python has not taken yet: beyond 1,000 (3,000 for certain) grpcio ends them as CANCELLED, and beyond
    # what the connection may have open, counted with those that it has not forgotten yet, as UNAVAILABLE. Here they are
    # taken, and refused by admission with a reason; one connection has max_concurrent_streams of them at most.
    options += [
        ("grpc.server.max_pending_requests", _ANY),
        ("grpc.server.max_pending_requests_hard_limit", _ANY),
        ("grpc.http.overload_protection", 0),
    ]
    if settings.max_connections:
        options.append(("grpc.max_allowed_incoming_connections", settings.max_connections))
    return options


def _bound(server: grpc.aio.Server, host: str, port: int, certificates: ServerCertificates | None) -> int:
    try:
        if certificates is not None:
            return server.add_secure_port(address_of(host, port), _credentials(certificates))
        return server.add_insecure_port(address_of(host, port))
    except RuntimeError as error:  # all that the library says is that it failed
        raise cannot_listen(host, port) from error


def _credentials(certificates: ServerCertificates) -> grpc.ServerCredentials:
    """Make what handshakes ask for certificates; it is asked on threads of the library's own."""
    taken = certificates.generation
    wants_clients = certificates.pem.client_ca is not None

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal taken
        generation = certificates.generation
        if generation == taken:
            return None
        taken = generation
        return _configuration(certificates.pem)

    fetch: Any = changed  # the stubs do not know that it may say "as before"
    return grpc.dynamic_ssl_server_credentials(
        _configuration(certificates.pem), fetch, require_client_authentication=wants_clients
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], root_certificates=pem.client_ca)


def address_of(host: str, port: int) -> str:
    """Return the address as gRPC's libraries take it."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def cannot_listen(host: str, port: int) -> ConfigError:
    """Return the error of an address that cannot be bound."""
    return ConfigError(
        f"grpc: cannot listen on {address_of(host, port)}; most likely the port is in use: stop what uses it, or "
        "choose another --grpc-port"
    )
