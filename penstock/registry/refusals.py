"""What the statuses of a registry stand for, as errors of ours with the registry's own reasons."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from penstock.errors import (
    ArtifactError,
    Conflict,
    NotFound,
    PenstockError,
    PermissionDenied,
    QueueFull,
    StorageError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from penstock.registry.replies import reason_in

ADVICE = (
    "give --token or PENSTOCK_REGISTRY_TOKEN to a command, with --user where it is a password, "
    "and an agent the settings registry_user and registry_token, or token"
)


class Retryable(Exception):
    """A connection that broke, or a server that says "later". ``last`` is raised when the attempts are used up."""

    def __init__(self, last: PenstockError) -> None:
        super().__init__(last.message)
        self.last = last


def refusal(url: str, status: int, headers: Mapping[str, str], body: bytes) -> PenstockError | Retryable:
    """Return what a status other than 2xx stands for; header names are in lower case."""
    # an answer to HEAD has no body: the status's own words are all there is
    reason = reason_in(body) or http.client.responses.get(status, "no reason given")
    message = f"{url} answered {status}: {reason}"
    if status == 404:
        return NotFound(message)
    if status == 401:
        return Unauthenticated(f"{message}; {ADVICE}")
    if status == 403:
        return PermissionDenied(f"{message}; this token may not do this, use one whose role allows it")
    if status == 413:
        return TooLarge(message, limit_bytes=0)
    if status in (409, 416):
        return Conflict(message)
    if status == 507:
        return StorageError(message)
    if status in (408, 429) or status >= 500:
        after = headers.get("retry-after", "")
        after_s = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else None
        kind = QueueFull if status == 429 else Unavailable
        return Retryable(kind(message, retry_after_s=after_s))
    return ArtifactError(message)
