"""Penstock: one client for an agent, a core, or any other Open Inference Protocol server.

The errors that it raises are here too. Names are loaded when they are first used, so that ``import penstock`` costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.errors import (
        ArtifactError,
        CalibrationError,
        Cancelled,
        CertificateMismatch,
        CompileError,
        ConfigError,
        Conflict,
        DatabaseAway,
        DeadlineExceeded,
        DigestMismatch,
        GateRefused,
        Internal,
        InUse,
        InvalidInput,
        MemoryFull,
        MissingExtra,
        MissingToolchain,
        NewerState,
        NotFound,
        PenstockError,
        PermissionDenied,
        QueueFull,
        QuotaExceeded,
        SignatureError,
        StorageError,
        TooLarge,
        Unauthenticated,
        Unavailable,
    )
    from penstock.sdk.aio import AsyncClient
    from penstock.sdk.call import InferResult
    from penstock.sdk.client import Client
    from penstock.sdk.texts import Text
    from penstock.wire.tls import Tls

    __version__: str

__all__ = [
    "ArtifactError",
    "AsyncClient",
    "CalibrationError",
    "Cancelled",
    "CertificateMismatch",
    "Client",
    "CompileError",
    "ConfigError",
    "Conflict",
    "DatabaseAway",
    "DeadlineExceeded",
    "DigestMismatch",
    "GateRefused",
    "InUse",
    "InferResult",
    "Internal",
    "InvalidInput",
    "MemoryFull",
    "MissingExtra",
    "MissingToolchain",
    "NewerState",
    "NotFound",
    "PenstockError",
    "PermissionDenied",
    "QueueFull",
    "QuotaExceeded",
    "SignatureError",
    "StorageError",
    "Text",
    "Tls",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "__version__",
]

_HOMES = {
    "AsyncClient": "penstock.sdk.aio",
    "Client": "penstock.sdk.client",
    "InferResult": "penstock.sdk.call",
    "Text": "penstock.sdk.texts",
    "Tls": "penstock.wire.tls",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("penstock")
    elif name in __all__:
        from importlib import import_module

        value = getattr(import_module(_HOMES.get(name, "penstock.errors")), name)
    else:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
