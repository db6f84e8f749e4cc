"""Which credential goes where: challenges of registries, honest and not."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import Unauthenticated
from penstock.registry.authorization import Authorization, Challenge, UsePassword, parse_challenges

PULL = "/v2/acme/digits/manifests/v1"
BEARER = 'Bearer realm="https://auth.test/token",service="registry.test",scope="repository:acme/digits:pull"'
BASIC = f"Basic {base64.b64encode(b'acme:s3cret').decode()}"


def authorization(user: str = "", secret: str = "", *, is_tls: bool = True) -> Authorization:
    return Authorization(user=user, secret=secret, is_tls=is_tls)


def answered(made: Authorization, value: str = BEARER) -> Challenge:
    answer = made.answer_to([value])
    assert isinstance(answer, Challenge)
    return answer


def granting(**fields: object) -> bytes:
    return json.dumps({"token": "t1", **fields}).encode()


def test_a_password_goes_to_the_service_that_was_named_and_not_to_the_registry_before() -> None:
    made = authorization("acme", "s3cret")
    assert made.header("GET", PULL) == ""
    ask = made.ask(answered(made))
    assert ask.authorization == BASIC
    parts = urlsplit(ask.url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "auth.test", "/token")
    assert dict(parse_qsl(parts.query)) == {
        "service": "registry.test", "scope": "repository:acme/digits:pull", "account": "acme", "client_id": "penstock",
    }  # fmt: skip


def test_nobody_asks_for_a_token_without_a_credential() -> None:
    made = authorization()
    assert made.ask(answered(made)).authorization == ""


def test_a_token_of_ones_own_never_goes_to_a_service() -> None:
    made = authorization(secret="mine")
    assert made.header("GET", PULL) == "Bearer mine"
    assert made.ask(answered(made)).authorization == ""


def test_a_realm_keeps_its_own_query() -> None:
    made = authorization()
    ask = made.ask(Challenge(realm="https://auth.test/token?tenant=7", service="s"))
    assert dict(parse_qsl(urlsplit(ask.url).query)) == {"tenant": "7", "service": "s"}


@pytest.mark.parametrize("realm", ["http://auth.test/token", "ftp://auth.test", "//auth.test", "https://u:p@auth.test"])
def test_a_service_in_the_clear_or_at_no_address_is_not_asked(realm: str) -> None:
    with pytest.raises(Unauthenticated):
        authorization("acme", "s3cret").ask(Challenge(realm=realm))


def test_a_registry_without_tls_may_name_a_service_without() -> None:
    ask = authorization("acme", "s3cret", is_tls=False).ask(Challenge(realm="http://127.0.0.1:5001/token"))
    assert ask.url.startswith("http://127.0.0.1:5001/token?")


def test_a_token_is_for_one_repository_and_one_purpose() -> None:
    made = authorization("acme", "s3cret")
    made.grant("GET", PULL, answered(made), granting(), now=0.0)
    assert made.header("HEAD", "/v2/acme/digits/blobs/sha256:1") == "Bearer t1"
    assert made.header("GET", "/v2/acme/letters/manifests/v1") == ""
    assert made.header("PUT", PULL) == ""


@pytest.mark.parametrize(("expires_in", "ends_at"), [(300, 290.0), (None, 50.0), (1, 50.0), (120.5, 110.5)])
def test_a_token_is_renewed_before_its_end(expires_in: float | None, ends_at: float) -> None:
    made = authorization("acme", "s3cret")
    challenge = answered(made)
    fields = {} if expires_in is None else {"expires_in": expires_in}
    made.grant("GET", PULL, challenge, granting(**fields), now=0.0)
    assert made.outdated("GET", PULL, ends_at - 1) is None
    assert made.outdated("GET", PULL, ends_at) == challenge


def test_a_service_that_calls_it_an_access_token() -> None:
    made = authorization()
    made.grant("GET", PULL, answered(made), b'{"access_token": "t2", "refresh_token": "r"}', now=0.0)
    assert made.header("GET", PULL) == "Bearer t2"


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"<html>", b'{"token": "a\\r\\nHost: b"}', b'{"token": ""}'])
def test_what_is_no_token_is_refused(answer: bytes) -> None:
    made = authorization()
    with pytest.raises(Unauthenticated, match="sent no token"):
        made.grant("GET", PULL, answered(made), answer, now=0.0)


def test_a_registry_that_takes_passwords_itself_gets_it_once_it_has_said_so() -> None:
    made = authorization("acme", "s3cret")
    assert isinstance(made.answer_to(['Basic realm="x"']), UsePassword)
    assert made.header("GET", PULL) == BASIC
    assert made.answer_to(['Basic realm="x"']) is None  # refused


def test_without_a_user_a_wish_for_a_password_has_no_answer() -> None:
    assert authorization(secret="mine").answer_to(['Basic realm="x"']) is None
    assert authorization().answer_to([]) is None


@pytest.mark.parametrize(
    "values",
    [
        [f'Basic realm="x", {BEARER}'],
        ['Basic realm="x"', BEARER],
        [BEARER.replace("Bearer", "bearer").replace("realm", "Realm").replace(",", " ,  ")],
        [f"Negotiate, {BEARER}"],
    ],
)
def test_a_challenge_among_others(values: list[str]) -> None:
    assert parse_challenges(values)["bearer"] == {
        "realm": "https://auth.test/token", "service": "registry.test", "scope": "repository:acme/digits:pull",
    }  # fmt: skip


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_header_is_read_to_its_end(values: list[str]) -> None:
    parse_challenges(values)
