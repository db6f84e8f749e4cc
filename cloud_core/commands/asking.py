"""How commands ask a running core over HTTP, and what they say where none answers."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.cli.core_option import NOBODY_THERE
from penstock.errors import Unavailable
from penstock.rest.connection import ask
from penstock.rest.exchange import Answer
from penstock.rest.status import error_from_http

_TIMEOUT_S = 5.0


def asked(
    base: str,
    method: str,
    path: str,
    token: str,
    *,
    body: bytes | None = None,
    says_no: int = 0,
    timeout_s: float = _TIMEOUT_S,
) -> Answer:
    """Ask a core; ``says_no`` is the status that is an answer too.

    Raises:
        InvalidInput: not a URL. Unavailable: nothing answers. PenstockError: what the core refuses with.
    """
    try:
        answer = ask(base, method, path, body=body, token=token, timeout_s=timeout_s)
    except Unavailable as error:
        raise Unavailable(f"no core answers at {base}: {error}; {NOBODY_THERE}") from error
    if answer.status not in (200, says_no):
        raise error_from_http(answer.status, answer.headers, answer.body)
    return answer


def told(base: str, path: str, token: str) -> dict[str, Any]:
    """Read one document of a core.

    Raises:
        Unavailable: nothing answers, or what answers is no core. PenstockError: what the core refuses with.
    """
    try:
        return msgspec.json.decode(asked(base, "GET", path, token).body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Unavailable(f"what answers there is no core: {error}") from None
