"""What a gRPC server serves: methods over bytes, in one table for every implementation of the listener.

A method with one request and one answer is a coroutine over bytes; grpcio's server and the native one both run it.
Methods with streams are grpcio's handlers, and run there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import grpc

Trailers = Sequence[tuple[str, str | bytes]]


class Call(Protocol):
    """What a unary method may ask of its call, and say about its end. ``grpc.aio.ServicerContext`` is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline; None without one."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Trailers) -> None: ...

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> NoReturn:
        """End the call with a status; raises what the listener understands."""
        ...


Unary = Callable[[bytes, Any], Awaitable[bytes]]
"""A method over bytes; its second argument is a :class:`Call`."""

Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service: its full name and its methods by their short names."""

    name: str
    unary: Mapping[str, Unary] = field(default_factory=dict)
    streams: Handlers = field(default_factory=dict)


def service_of(add: Callable[[Any, Any], None], servicer: Any) -> Service:
    """Return the service that generated code (``add_..._to_server``) makes of a servicer."""
    taken = _Taken()
    add(servicer, taken)
    handlers = taken.handlers
    return Service(
        name=taken.name,
        unary={name: _over_bytes(handler) for name, handler in handlers.items() if handler.unary_unary is not None},
        streams={name: handler for name, handler in handlers.items() if handler.unary_unary is None},
    )


class _Taken:
    """Stands where generated code expects a server, and keeps what it is given."""

    name: str
    handlers: Handlers

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Take nothing: what follows says the same with a name."""

    def add_registered_method_handlers(self, name: str, handlers: Handlers) -> None:
        self.name, self.handlers = name, handlers


def _over_bytes(handler: grpc.RpcMethodHandler[Any, Any]) -> Unary:
    method: Any = handler.unary_unary
    parse: Any = handler.request_deserializer
    serialize: Any = handler.response_serializer

    async def call(data: bytes, context: Call) -> bytes:
        answer: bytes = serialize(await method(parse(data), context))
        return answer

    return call
