"""The error tree that all rooms share.

Every class has a stable ``code`` of ours and a message that says what was wrong, what was expected and what to do.
Knows no HTTP or gRPC numbers: those live in ``penstock.rest.status`` and ``penstock.rpc.status``, one table each.
"""

from __future__ import annotations

from collections.abc import Mapping


class PenstockError(Exception):
    """Base of every error that Penstock raises on purpose.

    Attributes:
        code: stable, machine-readable name of the kind of failure.
        message: what a person needs to know to act.
        reason: short reason token for metrics and headers (``rejected-saturated`` and its kin), or "".
        retry_after_s: when trying again makes sense, in seconds; None when it does not.
    """

    code = "internal"
    reason = ""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class Internal(PenstockError):
    """A defect of ours, or of an engine: nothing the caller can mend by changing the request."""


class InvalidInput(PenstockError):
    """The request is wrong; ``field`` names the part that is."""

    code = "invalid-input"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFound(PenstockError):
    """An unknown model, version, repository, device or rollout. The message lists names that exist."""

    code = "not-found"


class Unavailable(PenstockError):
    """Loading, draining or out of reach; worth another try after ``retry_after_s``."""

    code = "unavailable"


class QueueFull(PenstockError):
    """A bounded queue is full; refused before any work was done."""

    code = "queue-full"
    reason = "rejected-saturated"


class MemoryFull(QueueFull):
    """The bytes of requests in flight leave no room for this one's; refused before its body was read."""

    code = "memory-full"
    reason = "rejected-memory"


class QuotaExceeded(PenstockError):
    """A tenant is over its rate. ``limit``, ``remaining`` and ``reset_s`` become ``x-ratelimit-*``."""

    code = "quota-exceeded"
    reason = "rejected-quota"

    def __init__(
        self, message: str, *, limit: int, remaining: int = 0, reset_s: float, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=reset_s if retry_after_s is None else retry_after_s)
        self.limit = limit
        self.remaining = remaining
        self.reset_s = reset_s


class DeadlineExceeded(PenstockError):
    """The deadline passed, or cannot be met. Nothing was executed."""

    code = "deadline-exceeded"
    reason = "rejected-deadline"


class Cancelled(PenstockError):
    """The client went away, or a transfer was ended from outside; its work was removed from queue and batch."""

    code = "cancelled"


class TooLarge(PenstockError):
    """A body, message or blob is over a limit; ``limit_bytes`` says which."""

    code = "too-large"

    def __init__(self, message: str, *, limit_bytes: int) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes


class Unauthenticated(PenstockError):
    """No credential, or one that is not known. Says nothing about what exists."""

    code = "unauthenticated"


class PermissionDenied(PenstockError):
    """A known credential that may not do this. Says nothing about what exists."""

    code = "permission-denied"


class Conflict(PenstockError):
    """The state does not allow it: pausing a finished rollout, applying an empty plan, moving a stale pointer."""

    code = "conflict"


class ConfigError(PenstockError):
    """A setting is misspelt, of the wrong type or out of range."""

    code = "config"


class MissingExtra(PenstockError):
    """A library that an optional part needs is not installed; the message names the extra.

    Attributes:
        library: what is not installed.
        extra: the extra that brings it; "" where another command does.
    """

    code = "missing-extra"

    def __init__(self, message: str, *, library: str = "", extra: str = "") -> None:
        super().__init__(message)
        self.library = library
        self.extra = extra


class MissingToolchain(MissingExtra):
    """A heavy backend's environment is not installed; the message names the command that installs it.

    Attributes:
        toolchain: its name where installing it would help, else "".
    """

    code = "missing-toolchain"

    def __init__(self, message: str, *, toolchain: str = "") -> None:
        super().__init__(message)
        self.toolchain = toolchain


class StorageError(PenstockError):
    """The disk said no: full, read-only, not writable, or locked by another process."""

    code = "storage"


class NewerState(StorageError):
    """A newer Penstock wrote a file that this one would have to change; the file is left as it was."""

    code = "newer-state"


class InUse(StorageError):
    """Another process has the state; who wants it waits, or says which process that is."""

    code = "in-use"


class DatabaseAway(StorageError):
    """The core's PostgreSQL does not answer, or lets nobody in; what needs it is refused, and inference goes on."""

    code = "database-away"


class ArtifactError(PenstockError):
    """An artifact, manifest or blob is malformed."""

    code = "artifact"


class DigestMismatch(ArtifactError):
    """Bytes do not hash to the digest that names them: corrupt, truncated or tampered with."""

    code = "digest-mismatch"


class CertificateMismatch(ArtifactError):
    """A certificate was issued for other digests than the ones at hand (invariant 5)."""

    code = "certificate-mismatch"


class SignatureError(ArtifactError):
    """An artifact is not signed by a key that is trusted here, or what was signed is not what is here."""

    code = "signature"


class CalibrationError(PenstockError):
    """Calibration or certification data do not allow what was asked; ``needed`` is the count of samples, or of
    clusters of samples that belong together, that would."""

    code = "calibration"

    def __init__(self, message: str, *, needed: int | None = None) -> None:
        super().__init__(message)
        self.needed = needed


class CompileError(PenstockError):
    """A compiler pass failed."""

    code = "compile"


class GateRefused(CompileError):
    """Candidates were made, but none may ship: a refusal, not a failure. The message has the reason of each."""

    code = "gate"


ALL: Mapping[str, type[PenstockError]] = {
    cls.code: cls
    for cls in (
        Internal, InvalidInput, NotFound, Unavailable, QueueFull, MemoryFull, QuotaExceeded, DeadlineExceeded,
        Cancelled, TooLarge, Unauthenticated, PermissionDenied, Conflict, ConfigError, MissingExtra, MissingToolchain,
        StorageError, NewerState, InUse, DatabaseAway, ArtifactError, DigestMismatch, CertificateMismatch,
        SignatureError, CalibrationError, CompileError, GateRefused,
    )
}  # fmt: skip


def copy_of(error: PenstockError) -> PenstockError:
    """Make a second instance of the same error: one raised in several tasks would gather all of their tracebacks."""
    copied = type(error).__new__(type(error))
    copied.__dict__.update(error.__dict__)
    copied.args = error.args
    return copied


def missing_extra(library: str, extra: str, purpose: str) -> MissingExtra:
    """Make the error for an optional library that is absent; it names the extra that brings the library."""
    return MissingExtra(
        f"{purpose} needs {library}, which is not installed: pip install 'penstock[{extra}]'",
        library=library,
        extra=extra,
    )


def outcome_code(error: BaseException | None) -> str:
    """Name what a request ended with, for counters: ``ok``, ``cancelled`` by a client that went away, or a code."""
    if error is None:
        return "ok"
    if isinstance(error, PenstockError):
        return error.code
    # the event loop's own cancellation is no Exception
    return Internal.code if isinstance(error, Exception) else Cancelled.code


def newer_state(where: str, *, found: int, known: int) -> NewerState:
    """Make the error for a file of a later schema version than this release knows."""
    return NewerState(
        f"{where} has schema version {found}, this Penstock knows {known}; "
        "start the version that wrote it, or use another data directory"
    )
