from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import errors
from penstock.errors import PenstockError
from penstock.registry.replies import reason_in
from penstock.rest import status as rest
from penstock.rest.codec import encode_error
from penstock.rpc import status as rpc

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "errors.md"
EXAMPLES: list[PenstockError] = [
    errors.Internal("broke"),
    errors.InvalidInput("inputs.x: wrong", field="inputs.x"),
    errors.NotFound("no model 'a'; known: b"),
    errors.Unavailable("loading", retry_after_s=0.25),
    errors.Unavailable("gone"),
    errors.QueueFull("full", retry_after_s=0.0),
    errors.QuotaExceeded("over", limit=10, remaining=0, reset_s=1.5),
    errors.DeadlineExceeded("late"),
    errors.TooLarge("big", limit_bytes=1024),
    errors.Conflict("finished"),
]


class _Failed(grpc.RpcError):
    """What a failed call raises: an RpcError that is also the call."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._values = (code, details, trailers)

    def code(self) -> grpc.StatusCode:
        return self._values[0]

    def details(self) -> str:
        return self._values[1]

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._values[2]


def facts(error: PenstockError) -> dict[str, Any]:
    return {"kind": type(error), "message": error.message, "reason": error.reason, **vars(error)}


@pytest.mark.parametrize("code", sorted(errors.ALL))
def test_every_error_has_a_row_in_both_tables(code: str) -> None:
    assert 400 <= rest.STATUS[code] < 600
    assert rpc.STATUS[code] is not grpc.StatusCode.OK


def test_every_class_has_a_code_of_its_own_and_a_row_on_the_page() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PenstockError)]
    classes.remove(PenstockError)
    assert {kind.code: kind for kind in classes} == dict(errors.ALL)
    assert len(classes) == len(errors.ALL)
    page = PAGE.read_text(encoding="utf-8")
    rows = [f"| `{code}` | {rest.STATUS[code]} | {rpc.STATUS[code].name} | " for code in errors.ALL]
    assert [row for row in rows if row not in page] == []


@pytest.mark.parametrize("code", sorted(errors.ALL))
def test_any_code_that_a_server_sends_becomes_an_error(code: str) -> None:
    headers = {"x-penstock-code": code, "retry-after": "3"}
    assert type(rest.error_from_http(503, headers, b"")) is errors.ALL[code]


def test_the_tables_have_no_rows_for_errors_that_do_not_exist() -> None:
    assert set(rest.STATUS) == set(rpc.STATUS) == set(errors.ALL)


@pytest.mark.parametrize(
    ("code", "http", "status"),
    [
        ("invalid-input", 400, "INVALID_ARGUMENT"),
        ("not-found", 404, "NOT_FOUND"),
        ("unavailable", 503, "UNAVAILABLE"),
        ("queue-full", 503, "RESOURCE_EXHAUSTED"),
        ("quota-exceeded", 429, "RESOURCE_EXHAUSTED"),
        ("deadline-exceeded", 504, "DEADLINE_EXCEEDED"),
        ("cancelled", 499, "CANCELLED"),
        ("too-large", 413, "RESOURCE_EXHAUSTED"),
        ("unauthenticated", 401, "UNAUTHENTICATED"),
        ("permission-denied", 403, "PERMISSION_DENIED"),
    ],
)
def test_the_rows_that_are_promised(code: str, http: int, status: str) -> None:
    assert rest.STATUS[code] == http
    assert rpc.STATUS[code].name == status


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.code)
def test_an_error_survives_http(error: PenstockError) -> None:
    headers = rest.headers_of(error)
    assert facts(rest.error_from_http(rest.http_status(error), headers, encode_error(error))) == facts(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.code)
def test_an_error_survives_grpc(error: PenstockError) -> None:
    failed = _Failed(rpc.grpc_status(error), error.message, rpc.trailing_metadata(error))
    assert facts(rpc.error_from_rpc(failed)) == facts(error)


def test_hints_over_http() -> None:
    assert rest.headers_of(errors.QueueFull("full", retry_after_s=0.25)) == {
        "x-penstock-code": "queue-full",
        "x-penstock-reason": "rejected-saturated",
        "Retry-After": "1",
        "retry-after-ms": "250",
    }
    assert rest.headers_of(errors.QuotaExceeded("over", limit=10, remaining=2, reset_s=1.5)) == {
        "x-penstock-code": "quota-exceeded",
        "x-penstock-reason": "rejected-quota",
        "x-ratelimit-limit": "10",
        "x-ratelimit-remaining": "2",
        "x-ratelimit-reset": "1.500",
        "Retry-After": "2",
        "retry-after-ms": "1500",
    }
    assert rest.headers_of(errors.Unauthenticated("no"))["WWW-Authenticate"] == "Bearer"
    assert rest.http_status(errors.QueueFull("full"), queue_full=429) == 429


def test_hints_over_grpc() -> None:
    assert dict(rpc.trailing_metadata(errors.Unavailable("draining", retry_after_s=1.2))) == {
        "x-penstock-code": "unavailable",
        "grpc-retry-pushback-ms": "1200",
    }
    assert dict(rpc.trailing_metadata(errors.DeadlineExceeded("late"))) == {
        "x-penstock-code": "deadline-exceeded",
        "x-penstock-reason": "rejected-deadline",
    }


@pytest.mark.parametrize("field", ["x\r\nSet-Cookie: a=b", "größe", "x" * 300, "tab\t"])
def test_a_field_that_no_header_may_carry_is_left_out(field: str) -> None:
    error = errors.InvalidInput("wrong", field=field)
    assert rest.headers_of(error) == {"x-penstock-code": "invalid-input"}
    assert dict(rpc.trailing_metadata(error)) == {"x-penstock-code": "invalid-input"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidInput),
        (404, errors.NotFound),
        (413, errors.TooLarge),
        (418, errors.Internal),
        (429, errors.QuotaExceeded),
        (500, errors.Internal),
        (503, errors.Unavailable),
        (504, errors.DeadlineExceeded),
    ],
)
def test_servers_that_are_not_ours(status: int, kind: type[PenstockError]) -> None:
    error = rest.error_from_http(status, {}, b"nothing here\n")
    assert type(error) is kind
    assert error.message == f"the server answered {status}: nothing here"
    assert type(rest.error_from_http(status, {}, b'{"error": "says so"}')) is kind


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>x</body></html>", "Bad Gateway"),
        (b"<!DOCTYPE html><html><title>\n Caf&eacute;\n closed </title>", "Caf\xe9 closed"),
        (b"<html>nothing</html>", "a page of HTML"),
        (b"<html><title>400 No required SSL certificate was sent</title>", "give cert_file, or PENSTOCK_CLIENT_CERT"),
        (b"<html><title>400 The plain HTTP request was sent to HTTPS port</title>", "use https:// for it"),
    ],
)
def test_a_page_of_a_web_server_is_one_line(body: bytes, says: str) -> None:
    for message in (rest.error_from_http(502, {}, body).message, reason_in(body)):
        assert message.endswith(says)
        assert message.isprintable()


def test_a_web_server_where_grpc_was_expected_is_told() -> None:
    error = rpc.error_from_rpc(_Failed(grpc.StatusCode.INTERNAL, "Received http2 header with status: 400"))
    assert "a web server, with status 400, and no gRPC service" in error.message
    assert "PENSTOCK_CLIENT_CERT" in error.message


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_grpc_status_of_others_becomes_an_error_of_ours(status: grpc.StatusCode) -> None:
    error = rpc.error_from_rpc(_Failed(status, ""))
    assert error.code in errors.ALL
    assert status.name in error.message


def test_grpc_refusing_a_message_by_itself_is_too_large() -> None:
    text = "CLIENT: Sent message larger than max (5242880 vs. 4194304)"
    error = rpc.error_from_rpc(_Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
    assert isinstance(error, errors.TooLarge)
    assert error.limit_bytes == 4194304


@pytest.mark.parametrize("text", ["-1", "soon", "", "1e3", "\uff19"])
def test_malformed_or_negative_pushback_means_do_not_retry(text: str) -> None:
    error = rpc.error_from_rpc(_Failed(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-retry-pushback-ms", text),)))
    assert error.retry_after_s is None
    assert rest.error_from_http(503, {"Retry-After": text}, b"").retry_after_s is None


@given(
    status=st.integers(100, 599),
    headers=st.dictionaries(
        st.sampled_from(
            ["Retry-After", "x-penstock-code", "x-ratelimit-limit", "X-RateLimit-Reset", "x-penstock-limit-bytes"]
        ),
        st.text(max_size=12) | st.sampled_from(["nan", "inf", "-1", "quota-exceeded", "too-large", "1e400"]),
    ),
    body=st.binary(max_size=64),
)
def test_no_answer_breaks_the_way_back(status: int, headers: dict[str, str], body: bytes) -> None:
    assert rest.error_from_http(status, headers, body).code in errors.ALL
