"""Tensors that travel in memory that client and server share, as both transports read and write them: the port, and a
server that has none. ``penstock.process.shared_regions`` is one that has some.
Source: Triton, "Shared-Memory Extension".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from penstock.errors import InvalidInput

REGION = "shared_memory_region"
SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"


class Regions(Protocol):
    """Regions that clients registered, by name."""

    @property
    def is_served(self) -> bool:
        """Say whether anything may be registered."""
        ...

    def read(self, region: str, offset: int, size_bytes: int, *, field: str) -> bytes:
        """Copy bytes out of a region, so that what a client writes there later changes nothing.

        Raises:
            InvalidInput: no such region, or it does not hold so many bytes there.
        """
        ...

    def check(self, region: str, offset: int, size_bytes: int, *, field: str) -> None:
        """Look whether a region has so many bytes there. Raises as :meth:`read`."""
        ...

    def write(self, region: str, offset: int, data: bytes, *, field: str) -> None:
        """Write into a region. Raises as :meth:`read`."""
        ...


class NoRegions:
    """A server that shares no memory."""

    is_served = False

    def read(self, region: str, offset: int, size_bytes: int, *, field: str) -> bytes:
        raise not_served(field)

    def check(self, region: str, offset: int, size_bytes: int, *, field: str) -> None:
        raise not_served(field)

    def write(self, region: str, offset: int, data: bytes, *, field: str) -> None:
        raise not_served(field)


NO_REGIONS = NoRegions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an output is wanted: a part of a region that was found to be there."""

    regions: Regions
    region: str
    offset: int
    size_bytes: int

    def put(self, data: bytes, *, field: str) -> dict[str, str | int]:
        """Write an output there, and return the parameters that tell where it is.

        Raises:
            InvalidInput: it is too large, or the region is gone.
        """
        if len(data) > self.size_bytes:
            raise InvalidInput(
                f"{field}: has {len(data)} bytes, and {SIZE} allows {self.size_bytes}; give it more room", field=field
            )
        self.regions.write(self.region, self.offset, data, field=field)
        told: dict[str, str | int] = {REGION: self.region, SIZE: len(data)}
        return told | ({OFFSET: self.offset} if self.offset else {})


def placement_of(parameters: Mapping[str, object], regions: Regions, *, field: str) -> Placement | None:
    """Read where an output is wanted; None where it is to travel in the answer.

    Raises:
        InvalidInput: the parameters are wrong, or the region has no such part.
    """
    found = part_of(parameters, regions, field=field)
    if found is None:
        return None
    region, offset, size_bytes = found
    regions.check(region, offset, size_bytes, field=field)
    return Placement(regions=regions, region=region, offset=offset, size_bytes=size_bytes)


def part_of(parameters: Mapping[str, object], regions: Regions, *, field: str) -> tuple[str, int, int] | None:
    """Read region, offset and size of a tensor in shared memory; None for one that is not there.

    Raises:
        InvalidInput: one of them is missing, or of the wrong kind; or nothing is shared.
    """
    region = parameters.get(REGION)
    if region is None:
        return None
    if not regions.is_served:
        raise not_served(field)
    offset, size_bytes = parameters.get(OFFSET, 0), parameters.get(SIZE)
    if not isinstance(region, str):
        raise InvalidInput(f"{field}: {REGION} is {region!r}, and has to be a region's name", field=field)
    for name, value in ((OFFSET, offset), (SIZE, size_bytes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidInput(f"{field}: {name} is {value!r}, and has to be a number of bytes", field=field)
    assert isinstance(offset, int)
    assert isinstance(size_bytes, int)
    return region, offset, size_bytes


def not_served(field: str) -> InvalidInput:
    """Say that a server shares no memory."""
    return InvalidInput(f"{field}: shared memory is not served here; send the bytes", field=field)
