"""Where a registry is: hosts, namespaces, and paths below which its API is."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidInput
from penstock.registry.address import parse_registry


@pytest.mark.parametrize(
    ("url", "site", "api", "repository"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "/v2", "digits"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000", "/v2", "digits"),
        ("https://ghcr.io/v2/acme", "https://ghcr.io", "/v2", "acme/digits"),
        ("https://host/penstock/v2", "https://host/penstock", "/penstock/v2", "digits"),
        ("https://host/penstock/v2/acme", "https://host/penstock", "/penstock/v2", "acme/digits"),
        ("https://host/v2/acme/v2", "https://host", "/v2", "acme/v2/digits"),
    ],
)
def test_before_v2_is_a_place_and_behind_it_a_namespace(url: str, site: str, api: str, repository: str) -> None:
    address = parse_registry(url)
    assert (address.site, address.api, address.repository("digits")) == (site, api, repository)
    assert (address.local(repository), address.below, address.server) == ("digits", None, site)


@pytest.mark.parametrize("path", ["acme", "group/project"])
def test_a_path_alone_is_a_namespace_unless_the_host_is_no_registry(path: str) -> None:
    address = parse_registry(f"https://host/{path}/")
    assert (address.site, address.repository("digits")) == ("https://host", f"{path}/digits")
    assert address.below is not None
    assert (address.below.api, address.below.repository("digits")) == (f"/{path}/v2", "digits")
    assert address.server == f"https://host/{path}"


def test_what_cannot_be_a_namespace_is_a_place() -> None:
    assert parse_registry("https://host/Penstock").api == "/Penstock/v2"


def test_a_repository_of_another_namespace_has_no_name_in_this_one() -> None:
    assert parse_registry("https://host/acme").local("acmes/digits") == ""


@pytest.mark.parametrize(
    "url",
    [
        "https://u:p@host",
        "https://host/?a=b",
        "https://host/#a",
        "https://host/v2/Acme",
        "https://host/v2/a%20b",
        "host",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="registry: "):
        parse_registry(url)
