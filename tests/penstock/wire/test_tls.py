"""Trust and identity over TLS: what is refused, and that the reason is told in words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock import Client, Tls
from penstock.errors import ConfigError, PenstockError, Unavailable
from penstock.rest.connection import ask
from penstock.wire.tls import context, from_environment, pem, trouble
from tests.penstock.sdk.server import Backend, running
from tests.tls import Authority, ends_tls, make_authority
from tests.waiting import PATIENCE_S

SCHEMES = ("https", "grpcs")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("other"), "other")


@contextmanager
def served(authority: Authority, *, wants_clients: bool = False) -> Iterator[dict[str, str]]:
    """Servers behind proxies that end TLS, in a thread: their addresses by scheme."""
    found: dict[str, str] = {}
    started, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def main() -> None:
        trust = authority.server_context(wants_clients=wants_clients)
        async with running(Backend()) as servers:
            http, grpc = (place.partition("://")[2] for place in (servers.http, servers.grpc))
            async with ends_tls(trust, http) as https, ends_tls(trust, grpc) as grpcs:
                found.update(https=f"https://{https}", grpcs=f"grpcs://{grpcs}")
                started.set()
                await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        loop.close()


@pytest.fixture(scope="module")
def open_to_all(authority: Authority) -> Iterator[dict[str, str]]:
    with served(authority) as found:
        yield found


@pytest.fixture(scope="module")
def for_known_clients(authority: Authority) -> Iterator[dict[str, str]]:
    with served(authority, wants_clients=True) as found:
        yield found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_authority_that_is_not_known_is_told_with_what_to_give(
    scheme: str, open_to_all: dict[str, str], authority: Authority, stranger: Authority
) -> None:
    for tls in (None, stranger.tls):
        with Client(open_to_all[scheme], tls=tls) as client:
            with pytest.raises(Unavailable, match="its certificate is not to be trusted here.*PENSTOCK_CA_FILE"):
                client.metadata("digits")
            assert not client.is_ready()
    with Client(open_to_all[scheme], tls=authority.tls) as client:
        assert client.metadata("digits").name == "digits"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_name_that_the_certificate_does_not_have_is_refused(
    scheme: str, open_to_all: dict[str, str], authority: Authority
) -> None:
    elsewhere = open_to_all[scheme].replace("127.0.0.1", "127.0.0.2")
    with Client(elsewhere, tls=authority.tls) as client, pytest.raises(Unavailable):
        client.metadata("digits")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_client_shows_its_certificate_where_one_is_asked_for(
    scheme: str, for_known_clients: dict[str, str], authority: Authority
) -> None:
    with Client(for_known_clients[scheme], tls=authority.tls_with_client) as client:
        assert client.metadata("digits").name == "digits"
    with Client(for_known_clients[scheme], tls=authority.tls) as client, pytest.raises(Unavailable):
        client.metadata("digits")


def test_the_environment_says_it_for_clients_that_are_told_nothing(
    open_to_all: dict[str, str], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CA_FILE", str(authority.ca))
    with Client(open_to_all["grpcs"]) as client:
        assert client.is_ready()
    assert ask(open_to_all["https"], "GET", "/v2/health/ready").status == 200
    monkeypatch.setenv("PENSTOCK_CLIENT_KEY", str(authority.client.key))
    with pytest.raises(ConfigError, match="PENSTOCK_CLIENT_CERT"):
        Client(open_to_all["grpcs"])


def test_a_file_that_is_none_of_its_kind_is_named(authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    wrong = (
        (Tls(ca_file="/nowhere/ca.pem"), r"tls\.ca_file: /nowhere/ca\.pem: No such file"),
        (Tls(ca_file=str(tmp_path / "empty.pem")), r"tls\.ca_file: .*empty\.pem: no certificates in PEM"),
        (
            Tls(cert_file=str(authority.client.cert), key_file=str(stranger.client.key)),
            r"tls\.cert_file: .*client\.pem: no certificate in PEM with the key for it",
        ),
    )
    for tls, message in wrong:
        for read in (context, pem):
            with pytest.raises(ConfigError, match=message):
                read(tls)
    with pytest.raises(ValueError, match="give cert_file, too"):
        Tls(key_file="key.pem")


def test_without_a_word_the_machine_is_trusted() -> None:
    assert from_environment({}) == Tls()
    assert pem(Tls())[1:] == (None, None)


@pytest.mark.parametrize(
    ("complaint", "meaning"),
    [
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1)",
            "has expired",
        ),
        (
            "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.2'. (_ssl.c:1)",
            "name",
        ),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "speaks no TLS"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "cert_file"),
        ("<h1>400 The plain HTTP request was sent to HTTPS port</h1>", "use https://"),
        ("Connection refused", ""),
    ],
)
def test_complaints_in_words(complaint: str, meaning: str) -> None:
    assert meaning in trouble(complaint)
    assert bool(trouble(complaint)) == bool(meaning)


def test_http_to_a_port_of_tls_says_so(open_to_all: dict[str, str]) -> None:
    with Client(open_to_all["https"].replace("https", "http")) as client, pytest.raises(PenstockError):
        client.metadata("digits")
