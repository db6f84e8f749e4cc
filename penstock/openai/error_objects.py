"""Errors as OpenAI's API has them: ``{"error": {"message", "type", "param", "code"}}``, and the way back.

``code`` is ours, as in every other answer; ``type`` is one of the few that clients of OpenAI look at. Statuses and
headers are the transport's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import InvalidInput, PenstockError
from penstock.wire.hints import error_of

_TYPES: Mapping[str, str] = {
    "unauthenticated": "authentication_error",
    "permission-denied": "permission_error",
    "quota-exceeded": "rate_limit_error",
    "queue-full": "overloaded_error",
    "memory-full": "overloaded_error",
    "unavailable": "overloaded_error",
    "deadline-exceeded": "timeout_error",
    "invalid-input": "invalid_request_error",
    "not-found": "invalid_request_error",
    "too-large": "invalid_request_error",
    "conflict": "invalid_request_error",
}
# what servers of others say in "code", as a number or as text, or else in "type"
_CODES: Mapping[str, str] = {
    "400": "invalid-input",
    "401": "unauthenticated",
    "403": "permission-denied",
    "404": "not-found",
    "429": "quota-exceeded",
    "503": "queue-full",  # vLLM says it in a stream that has begun, too, and without a time to come back
    "504": "deadline-exceeded",
    "invalid_request_error": "invalid-input",
    "BadRequestError": "invalid-input",
    "NotFoundError": "not-found",
    "model_not_found": "not-found",
    "context_length_exceeded": "invalid-input",
    "rate_limit_exceeded": "quota-exceeded",
}


def error_document(error: PenstockError) -> dict[str, Any]:
    """Write an error."""
    param = error.field or None if isinstance(error, InvalidInput) else None
    kind = _TYPES.get(error.code, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def error_from_document(document: object) -> PenstockError | None:
    """Return the error that a document of any server stands for; None where it is none.

    A code that is not known makes it Internal: nobody can say whether asking again helps.
    """
    found = document.get("error") if isinstance(document, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, Mapping):
        return error_of("internal", str(found), {})
    code, kind = str(found.get("code")), str(found.get("type"))
    known = _CODES.get(code) or (code if "-" in code or code == "config" else _CODES.get(kind, code))
    field = found.get("param")
    hints = {"x-penstock-field": field} if isinstance(field, str) else {}
    return error_of(known, str(found.get("message") or "the server gave no reason"), hints)
