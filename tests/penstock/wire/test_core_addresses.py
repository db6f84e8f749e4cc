"""One address names a core: the other is beside it, or is named as well."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidInput
from penstock.wire.core_addresses import parse_core


@pytest.mark.parametrize(
    ("text", "http", "grpc"),
    [
        ("grpc://core:8001", "http://core:8000", "grpc://core:8001"),
        ("http://core:8000", "http://core:8000", "grpc://core:8001"),
        ("https://core.example", "https://core.example:443", "grpcs://core.example:443"),
        ("grpcs://core.example:8443", "https://core.example:8443", "grpcs://core.example:8443"),
        ("https://example.org/inner", "https://example.org:443/inner", "grpcs://example.org:443"),
        ("http://a:80, grpc://b:9", "http://a:80", "grpc://b:9"),
        ("grpcs://b,https://a/inner", "https://a:443/inner", "grpcs://b:443"),
    ],
)
def test_both_addresses_are_found(text: str, http: str, grpc: str) -> None:
    found = parse_core(text)
    assert (str(found.http), str(found.grpc)) == (http, grpc)


@pytest.mark.parametrize(
    "text", ["", "core", "unix:///s", "http://a:1,http://b:2", "grpc://a:1,unix:///s", "http://a:1,grpc://b:2,grpc://c:3"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_core(text)


def test_an_address_that_has_no_port_beside_it_is_enough_where_the_other_is_not_needed() -> None:
    lowest, highest = parse_core("grpc://a:1"), parse_core("http://a:65535")
    assert (str(lowest.grpc), str(highest.http)) == ("grpc://a:1", "http://a:65535")
    with pytest.raises(InvalidInput, match="name both addresses"):
        _ = lowest.http
    with pytest.raises(InvalidInput, match="name both addresses"):
        _ = highest.grpc
