"""Shared memory that clients on the same machine registered: which objects of ``/dev/shm``, and how they are reached.

Nothing that a client names reaches another path, and nothing it does to its memory can hurt the server: an object is
opened once, when it is registered, and read and written by system calls. A map of it would be quicker by nothing, since
inputs are copied out anyhow, and a client that cuts its object short would kill the server with SIGBUS.
Source: Triton, "Shared-Memory Extension"; shm_overview(7).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from penstock.errors import Conflict, InvalidInput, NotFound, PermissionDenied

_DIRECTORY = Path("/dev/shm")
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.-]{0,199})")
_NAME = re.compile(r"[\x21-\x7e]{1,200}")
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class SharedMemorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tensors in memory that clients on this machine share with the server. Only where both ports listen on loopback
    and there are no tenants: whoever may call reaches whatever is registered.

    Attributes:
        max_regions: how many may be registered at a time; 0 serves no shared memory.
        max_region_bytes: of one of them.
        prefix: what the names of their objects in /dev/shm begin with; "" for any. They belong to the user that the
            server runs as, whatever their names are.
    """

    max_regions: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0
    max_region_bytes: Annotated[int, msgspec.Meta(ge=1, le=2_000_000_000)] = 256 * 1024 * 1024
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of an object that clients may name.

    Attributes:
        key: the object, as its client called it.
        offset: where it begins in the object.
    """

    name: str
    key: str
    offset: int
    size_bytes: int
    descriptor: int


class SharedRegions:
    """The regions of one server; see :class:`penstock.wire.regions.Regions`. Not for several threads."""

    def __init__(self, settings: SharedMemorySettings) -> None:
        self._settings = settings
        self._regions: dict[str, Region] = {}

    @property
    def is_served(self) -> bool:
        """Say whether anything may be registered."""
        return self._settings.max_regions > 0

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Open an object of ``/dev/shm`` and remember a part of it under a name.

        Raises:
            InvalidInput: it is no such object, or too short; or nothing is served. PermissionDenied: it belongs to
            another user. Conflict: the name is taken, or there are as many as there may be.
        """
        settings, field = self._settings, f"region {name[:200]!r}"
        if not self.is_served:
            raise InvalidInput(
                f"{field}: shared memory is not served here (shared_memory.max_regions is 0); send the bytes",
                field="key",
            )
        if not _NAME.fullmatch(name):
            raise InvalidInput("name: 1 to 200 printable characters of ASCII, without spaces", field="name")
        if name in self._regions:
            raise Conflict(f"{field} is registered already; unregister it first")
        if len(self._regions) >= settings.max_regions:
            raise Conflict(
                f"{field}: {settings.max_regions} are registered, the limit (shared_memory.max_regions); unregister one"
            )
        if not 0 < size_bytes <= settings.max_region_bytes or offset < 0:
            limit = f"1 to {settings.max_region_bytes} (shared_memory.max_region_bytes)"
            raise InvalidInput(
                f"{field}: byte_size is {size_bytes} and offset {offset}; expected a size of {limit}, and an offset of "
                "0 or more",
                field="byte_size",
            )
        descriptor = _open(key, settings.prefix)
        try:
            _check_object(descriptor, key, offset + size_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = Region(name=name, key=key, offset=offset, size_bytes=size_bytes, descriptor=descriptor)

    def status(self, name: str = "") -> Sequence[Region]:
        """List what is registered, or one region.

        Raises:
            NotFound: there is none of this name.
        """
        if not name:
            return tuple(self._regions.values())
        if name not in self._regions:
            raise NotFound(f"no shared memory region {name[:200]!r} is registered")
        return (self._regions[name],)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; of one that is not there, nothing is said, as Triton has it."""
        for one in [name] if name else list(self._regions):
            region = self._regions.pop(one, None)
            if region is not None:
                os.close(region.descriptor)

    def close(self) -> None:
        """Forget all of them."""
        self.unregister()

    def read(self, region: str, offset: int, size_bytes: int, *, field: str) -> bytes:
        found = self._part(region, offset, size_bytes, field)
        data = os.pread(found.descriptor, size_bytes, found.offset + offset)
        if len(data) != size_bytes:
            raise InvalidInput(f"{field}: the object of region {region[:200]!r} was cut short", field=field)
        return data

    def check(self, region: str, offset: int, size_bytes: int, *, field: str) -> None:
        self._part(region, offset, size_bytes, field)

    def write(self, region: str, offset: int, data: bytes, *, field: str) -> None:
        found = self._part(region, offset, len(data), field)
        try:
            written = os.pwrite(found.descriptor, data, found.offset + offset)
        except OSError as error:
            raise InvalidInput(f"{field}: region {region[:200]!r} cannot be written: {error}", field=field) from None
        if written != len(data):
            raise InvalidInput(f"{field}: region {region[:200]!r} took {written} of {len(data)} bytes", field=field)

    def _part(self, name: str, offset: int, size_bytes: int, field: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise InvalidInput(f"{field}: no shared memory region {name[:200]!r} is registered", field=field)
        if offset + size_bytes > region.size_bytes:
            raise InvalidInput(
                f"{field}: {size_bytes} bytes at offset {offset} are not inside region {name[:200]!r}, which has "
                f"{region.size_bytes}",
                field=field,
            )
        return region


def _open(key: str, prefix: str) -> int:
    match = _KEY.fullmatch(key)
    if match is None or not match[1].startswith(prefix):
        begins = f", and begins with {prefix!r} (shared_memory.prefix)" if prefix else ""
        raise InvalidInput(
            f"key: {key[:200]!r} names no object of /dev/shm; a name has letters, digits, '_', '-' and '.'{begins}",
            field="key",
        )
    try:
        return os.open(_DIRECTORY / match[1], _FLAGS)
    except OSError as error:
        raise InvalidInput(f"key: {key[:200]!r} cannot be opened: {error.strerror}", field="key") from None


def _check_object(descriptor: int, key: str, end: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(f"key: {key[:200]!r} is no shared memory object", field="key")
    if found.st_uid != os.geteuid():
        raise PermissionDenied(f"key: {key[:200]!r} belongs to another user than the server's")
    if found.st_size < end:
        raise InvalidInput(
            f"byte_size: {key[:200]!r} has {found.st_size} bytes, and the region would end at {end}", field="byte_size"
        )
