"""What a compiled engine may run on: a JSON document beside it, and the rule that reads it.

An engine (TensorRT, TensorRT for RTX) is machine code for some graphics processors. Loading one that does not fit
fails late and in words for nobody, so the document ``engine.json`` says what it was built from, by what and for what,
and :func:`check_compatible` says why a machine cannot run it. Pure; asks no driver anything. Because an engine is
machine code, it is only ever loaded from an artifact whose digests, and signature where one is required, were checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from penstock.artifact.blobs import digest_of
from penstock.errors import ArtifactError

FILE = "engine.json"

Format = Literal["tensorrt", "tensorrt-rtx"]
Shape = tuple[int, ...]


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shapes of one input that the engine accepts, from ``least`` to ``most``; fastest at ``best``."""

    least: Shape
    best: Shape
    most: Shape


class EngineHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``engine.json`` holds.

    Attributes:
        onnx_digest: of the model that it was built from.
        engine_digest: of the engine itself.
        version: of TensorRT, all four parts.
        compute_capabilities: graphics processors that it has code for, as NVIDIA names them: ``8.9``.
        precision: ``fp32``, ``fp16`` or ``int8``: what the model holds; engines are strongly typed.
        profiles: accepted shapes by input; inputs of fixed shape included.
        os: as ``platform.system().lower()`` says.
        architecture: as ``platform.machine()`` says.
        flags: what else the builder was told; it decides about the bytes.
        is_version_compatible: it also runs on newer versions.
        driver: CUDA version of the driver that timed its kernels, "" where none did.
        cache_key: a digest of everything above but ``engine_digest``: the same key, the same work.
    """

    schema_version: Literal[1] = 1
    format: Format
    onnx_digest: str
    engine_digest: str
    version: str
    compute_capabilities: tuple[str, ...]
    precision: Literal["fp32", "fp16", "int8"]
    profiles: dict[str, Range]
    os: str
    architecture: str
    flags: dict[str, str | int | bool]
    is_version_compatible: bool = False
    driver: str = ""
    cache_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHost:
    """A machine as far as engines are concerned.

    Attributes:
        runtimes: versions of the runtimes that are installed, by format.
        compute_capability: of its graphics processor, or None where it has none.
    """

    os: str
    architecture: str
    runtimes: Mapping[str, str]
    compute_capability: str | None


def check_compatible(header: EngineHeader, machine: EngineHost) -> str | None:
    """Say why ``machine`` cannot run the engine; None if it can.

    Engines never move between operating systems. Without version compatibility the runtime must be the very version
    that built it; with it, the same or a newer one of the same major version, or of the next one
    (NVIDIA's TensorRT developer guide, "Version Compatibility").
    """
    here = f"{machine.os} on {machine.architecture}"
    if (header.os, header.architecture) != (machine.os, machine.architecture):
        return f"it was built for {header.os} on {header.architecture}, and this is {here}"
    if machine.compute_capability is None:
        return "there is no NVIDIA GPU here"
    if machine.compute_capability not in header.compute_capabilities:
        return (
            f"it has code for compute capability {', '.join(header.compute_capabilities)}, and this GPU's is "
            f'{machine.compute_capability}: compile with compute_capabilities = ["{machine.compute_capability}"]'
        )
    runtime = machine.runtimes.get(header.format)
    if runtime is None:
        return f"the runtime {header.format} is not installed here; the engine needs version {header.version}"
    return _check_version(header, runtime)


def make_key(header: EngineHeader) -> str:
    """Compute the header's ``cache_key``: it changes when anything changes that decides what the engine is."""
    bare = msgspec.structs.replace(header, engine_digest="", cache_key="")
    return digest_of(msgspec.json.encode(bare, order="deterministic"))


def encode(header: EngineHeader) -> bytes:
    """Write the document; the same header, the same bytes."""
    return msgspec.json.format(msgspec.json.encode(header, order="deterministic"), indent=2) + b"\n"


def decode(data: bytes) -> EngineHeader:
    """Read a header.

    Raises:
        ArtifactError: no such document, or its key is not that of its content.
    """
    try:
        header = msgspec.json.decode(data, type=EngineHeader)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactError(f"{FILE}: not a description of an engine: {str(error)[:300]}") from error
    if header.cache_key != make_key(header):
        raise ArtifactError(f"{FILE}: its cache_key does not belong to its content; it was changed by hand")
    return header


def _check_version(header: EngineHeader, runtime: str) -> str | None:
    built, found = _parts(header.version), _parts(runtime)
    if found == built:
        return None
    if not header.is_version_compatible:
        return f"it was built by {header.format} {header.version} and runs on no other version; here is {runtime}"
    if found < built or found[0] > built[0] + 1:
        return (
            f"it was built by {header.format} {header.version} and runs on that and newer versions up to "
            f"{built[0] + 1}.x; here is {runtime}"
        )
    return None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
