from __future__ import annotations

import pytest

from penstock.errors import InvalidInput
from penstock.wire.addresses import Target, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("grpc://127.0.0.1:8001", Target(scheme="grpc", host="127.0.0.1", port=8001)),
        ("http://core.example:80/", Target(scheme="http", host="core.example", port=80)),
        ("grpc://[::1]:8001", Target(scheme="grpc", host="::1", port=8001)),
        ("https://core.example", Target(scheme="https", host="core.example", port=443)),
        ("https://core.example/inner/", Target(scheme="https", host="core.example", port=443, path="/inner")),
        ("https://[::1]/inner", Target(scheme="https", host="::1", port=443, path="/inner")),
        ("http://core.example", Target(scheme="http", host="core.example", port=80)),
        ("http://a:1/path", Target(scheme="http", host="a", port=1, path="/path")),
        ("grpcs://core.example", Target(scheme="grpcs", host="core.example", port=443)),
        ("grpcs://core.example:8443", Target(scheme="grpcs", host="core.example", port=8443)),
        ("unix:///run/penstock/agent.sock", Target(scheme="unix", path="/run/penstock/agent.sock")),
        ("unix://agent.sock", Target(scheme="unix", path="agent.sock")),
        ("unix://./run/agent.sock", Target(scheme="unix", path="./run/agent.sock")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", "localhost:8001", "unix://", "unix:///", "unix:///run/", "https://", "https:///a", "ftp://a"),
        *("grpc://a", "grpc://:1", "grpc://a:0", "grpc://a:65536", "grpc://a:b", "grpc://a:-1", "grpc://::1:8001"),
        *(
            "http://user@a:1",
            "http://a:1/x?y",
            "http://a/x#y",
            "http://a/ b",
            "http://a//b",
            "grpcs://a/b",
            "grpc://a:1/b",
        ),
    ],
)
def test_anything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(InvalidInput, match="grpc://host:port, http://host:port or unix:///path"):
        parse_target(text)
