"""One exchange of the Open Inference Protocol over HTTP, as values: what to send, and what an answer means.

Does no I/O; the synchronous and the asyncio transport move the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from penstock.errors import Internal, InvalidInput, Unavailable
from penstock.rest import codec
from penstock.rest.metadata import decode_metadata
from penstock.rest.status import error_from_http
from penstock.wire.context import client_context, headers_of
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata
from penstock.wire.tls import trouble

MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What to send."""

    method: Literal["GET", "POST"]
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def model_path(model: str, version: str = "", verb: str = "") -> str:
    """Make ``/v2/models/{model}[/versions/{version}][/{verb}]``; names are quoted, so none reaches another path."""
    path = f"/v2/models/{quote(model, safe='')}"
    if version:
        path += f"/versions/{quote(version, safe='')}"
    return f"{path}/{verb}" if verb else path


def infer_exchange(request: InferRequest, timeout_s: float, token: str | None) -> Exchange:
    """Make the exchange of an inference; its inputs travel as raw bytes."""
    encoded = codec.encode_request(request)
    headers = {**encoded.headers, **_base_headers(timeout_s, token, request.id)}
    return Exchange(
        method="POST", path=model_path(request.model, request.version, "infer"), headers=headers, body=encoded.body
    )


def get_exchange(path: str, timeout_s: float, token: str | None) -> Exchange:
    """Make the exchange of a GET: metadata or a probe."""
    return Exchange(method="GET", path=path, headers=_base_headers(timeout_s, token))


def post_exchange(path: str, body: bytes, timeout_s: float, token: str | None, *, request_id: str = "") -> Exchange:
    """Make the exchange of a request that is JSON."""
    headers = {"Content-Type": codec.JSON, **_base_headers(timeout_s, token, request_id)}
    return Exchange(method="POST", path=path, headers=headers, body=body)


def read_body(answer: Answer) -> bytes:
    """
    Raises:
        PenstockError: what the server said no with.
    """
    _raise_for_status(answer)
    return answer.body


def read_infer(answer: Answer) -> InferResponse:
    """
    Raises:
        PenstockError: what the server said no with. Internal: it answered something else than an inference response.
    """
    _raise_for_status(answer)
    length = answer.headers.get(codec.HEADER_LENGTH.lower())
    try:
        header_length = None if length is None else codec.parse_header_length(length)
    except InvalidInput as error:
        raise Internal(f"the server's answer is malformed: {error.message}") from None
    return codec.decode_response(answer.body, header_length=header_length)


def read_metadata(answer: Answer) -> ModelMetadata:
    """
    Raises:
        PenstockError: what the server said no with. Internal: it answered something else than metadata.
    """
    _raise_for_status(answer)
    return decode_metadata(answer.body)


def read_probe(answer: Answer) -> bool:
    """Say whether a health or readiness probe was answered with yes.

    Raises:
        PenstockError: the server did not let us ask (401, 403, 500).
    """
    if answer.status in (400, 404, 503):  # the ways in which servers say "not ready" and "no such model"
        return False
    _raise_for_status(answer)
    return True


def _raise_for_status(answer: Answer) -> None:
    if not 200 <= answer.status < 300:
        if answer.status == 400 and (said := trouble(answer.body[:2000].decode("latin-1"))):  # of a proxy before it
            raise Unavailable(said)
        raise error_from_http(answer.status, answer.headers, answer.body)


def _base_headers(timeout_s: float, token: str | None, request_id: str = "") -> dict[str, str]:
    headers = headers_of(client_context(request_id), timeout_s)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers
