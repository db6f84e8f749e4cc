"""Server reflection, v1alpha and v1, over our private descriptor pool and the default one.

The two versions have the same messages under two names; the library knows the older one. The newer one's descriptors
are made of it, so that a client can ask for them as well.
Source: grpc/reflection/v1/reflection.proto, which differs from v1alpha's in its package alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from cloud_core.api.rpc.listening.methods import Service, service_of
from penstock.rpc.pb import POOL

T = TypeVar("T")
_OLD, _NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"
NAMES = (f"{_OLD}.ServerReflection", f"{_NEW}.ServerReflection")


def reflection_services(names: Iterable[str]) -> tuple[Service, ...]:
    """Return both versions of the service, which describe services of these names."""
    pools: Any = Pools(POOL, _new_pool(), descriptor_pool.Default())  # what reflection uses of a pool
    servicer = ReflectionServicer((*names, *NAMES), pool=pools)
    old = service_of(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)
    return old, Service(name=NAMES[1], streams=old.streams)


class Pools:
    """Several descriptor pools as one, asked in order. Our messages live in a private pool, so that other OIP clients
    can be imported beside us; the default one holds health and reflection.
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


def _new_pool() -> DescriptorPool:
    """Return a pool with the file of v1: v1alpha's under its other name."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _NEW
    for message in file.message_type:
        for one in (one for one in message.field if one.type_name):
            one.type_name = one.type_name.replace(f".{_OLD}.", f".{_NEW}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{_OLD}.", f".{_NEW}.")
        method.output_type = method.output_type.replace(f".{_OLD}.", f".{_NEW}.")
    file.ClearField("options")
    pool = DescriptorPool()
    pool.Add(file)
    return pool
