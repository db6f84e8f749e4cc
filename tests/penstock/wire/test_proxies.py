"""Which servers are reached through a proxy, by the variables of the environment."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.wire.proxies import proxy_for

PROXY = "http://proxy.test:3128"


def address(scheme: str, host: str, environment: dict[str, str], port: int = 8000) -> str:
    found = proxy_for(scheme, host, port, environment)
    return "" if found is None else found.address


@pytest.mark.parametrize(
    ("scheme", "variables", "proxied"),
    [
        ("http", {"http_proxy": PROXY}, True),
        ("grpc", {"http_proxy": PROXY}, True),
        ("https", {"http_proxy": PROXY}, False),
        ("grpcs", {"http_proxy": PROXY}, False),
        ("http", {"HTTP_PROXY": PROXY}, True),
        ("https", {"https_proxy": PROXY}, True),
        ("grpcs", {"HTTPS_PROXY": PROXY}, True),
        ("http", {"https_proxy": PROXY}, False),
        ("http", {"all_proxy": PROXY}, True),
        ("grpcs", {"ALL_PROXY": PROXY}, True),
        ("http", {"http_proxy": "", "all_proxy": PROXY}, False),
        ("http", {"http_proxy": "", "HTTP_PROXY": PROXY}, False),
        ("http", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, False),
        ("http", {"grpc_proxy": PROXY}, False),
        ("grpc", {"grpc_proxy": PROXY}, False),
        ("http", {}, False),
    ],
)
def test_one_rule_for_all_schemes(scheme: str, variables: dict[str, str], proxied: bool) -> None:
    assert address(scheme, "core.test", variables) == ("proxy.test:3128" if proxied else "")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"],
)
def test_what_is_on_this_machine_goes_through_none(host: str) -> None:
    assert address("http", host, {"all_proxy": PROXY, "http_proxy": PROXY}) == ""


@pytest.mark.parametrize(
    ("no_proxy", "host", "excepted"),
    [
        ("*", "core.test", True),
        ("core.test", "core.test", True),
        ("CORE.test.", "Core.Test", True),
        ("test", "core.test", True),
        (".test", "core.test", True),
        ("*.test", "core.test", True),
        ("other.test, core.test", "core.test", True),
        ("other.test core.test", "core.test", True),
        ("ore.test", "core.test", False),
        ("core.test:8000", "core.test", True),
        ("core.test:8001", "core.test", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:8000", "10.1.2.3", True),
        ("10.1.2.0/24", "10.1.2.3", True),
        ("10.1.3.0/24", "10.1.2.3", False),
        ("2.3", "10.1.2.3", False),
        ("fd00::/8", "fd12::1", True),
        ("[fd12::1]:8000", "fd12::1", True),
        ("fd12::1", "fd12::2", False),
        ("10.1.2.0/24", "core.test", False),
        (", ,", "core.test", False),
        ("", "core.test", False),
    ],
)
def test_no_proxy_names_hosts_domains_numbers_and_networks(no_proxy: str, host: str, excepted: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        assert (address("http", host, {"http_proxy": PROXY, name: no_proxy}) == "") == excepted


def test_user_and_password_are_for_the_proxy_alone() -> None:
    found = proxy_for("http", "core.test", 80, {"http_proxy": "http://me:p%40ss@[fd00::1]:3128/"})
    assert found is not None
    assert found.headers == {"Proxy-Authorization": f"Basic {base64.b64encode(b'me:p@ss').decode()}"}
    assert (found.url, found.address) == ("http://me:p%40ss@[fd00::1]:3128", "[fd00::1]:3128")


def test_a_proxy_without_scheme_or_port_is_one_of_http_at_80() -> None:
    assert address("http", "core.test", {"http_proxy": "proxy.test"}) == "proxy.test:80"


@pytest.mark.parametrize(
    "value", ["socks5://proxy.test:1080", "https://proxy.test", "http://", "http://a:b:c", "ftp://u:p@x"]
)
def test_what_is_no_http_proxy_is_an_error_and_never_gone_around(value: str) -> None:
    with pytest.raises(InvalidInput, match="http_proxy: .* name the server in no_proxy") as error:
        proxy_for("http", "core.test", 80, {"http_proxy": value})
    assert "u:p" not in error.value.message
    assert address("http", "core.test", {"http_proxy": value, "no_proxy": "core.test"}) == ""


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.integers(1, 65535))
def test_any_words_give_a_proxy_or_an_error_of_ours(proxy: str, no_proxy: str, host: str, port: int) -> None:
    with contextlib.suppress(InvalidInput):
        proxy_for("http", host, port, {"http_proxy": proxy, "no_proxy": no_proxy})
