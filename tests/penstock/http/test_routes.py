"""The table of routes: which row a method and a path find, and what is told when there is none."""

from __future__ import annotations

import pytest

from penstock.errors import NotFound, QueueFull
from penstock.http.routes import MethodNotAllowed, Reply, Request, Route, Table, refusal


async def answer(request: Request) -> Reply:
    return Reply()


TABLE = Table(
    [
        Route("POST", "/v2/models/{model}/infer", answer),
        Route("GET", "/v2/models/{model}", answer),
        Route("GET", "/v2/{name*}/blobs/{digest}", answer),
        Route("PUT", "/v2/{name*}/blobs/{digest}", answer),
        Route("GET", "/v2.1", answer),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "pattern", "names"),
    [
        ("POST", "/v2/models/m/infer", "/v2/models/{model}/infer", {"model": "m"}),
        ("GET", "/v2/models/m", "/v2/models/{model}", {"model": "m"}),
        ("HEAD", "/v2/models/m", "/v2/models/{model}", {"model": "m"}),
        ("GET", "/v2/models/a%2Fb%20c", "/v2/models/{model}", {"model": "a/b c"}),
        ("GET", "/v2/models/a%252Fb", "/v2/models/{model}", {"model": "a%2Fb"}),
        ("GET", "/v2/a/b/c/blobs/sha256:1", "/v2/{name*}/blobs/{digest}", {"name": "a/b/c", "digest": "sha256:1"}),
        ("PUT", "/v2/a/blobs/sha256%3A1", "/v2/{name*}/blobs/{digest}", {"name": "a", "digest": "sha256:1"}),
        ("GET", "/v2.1", "/v2.1", {}),
    ],
)
def test_the_first_row_that_fits_is_found_and_names_are_decoded_once(
    method: str, path: str, pattern: str, names: dict[str, str]
) -> None:
    route, found = TABLE.find(method, path)
    assert (route.pattern, found) == (pattern, names)


@pytest.mark.parametrize("path", ["", "/", "/v2", "/v2/models/", "/v2/models/a/b", "/v2x1", "/v2/models/m/infer/", "*"])
def test_a_path_of_no_row_is_not_found(path: str) -> None:
    with pytest.raises(NotFound, match="nothing is served at"):
        TABLE.find("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/m/infer", ("POST",)),
        ("HEAD", "/v2/models/m/infer", ("POST",)),
        ("DELETE", "/v2/a/blobs/d", ("GET", "PUT", "HEAD")),
    ],
)
def test_a_method_of_no_row_is_told_those_that_there_are(method: str, path: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        TABLE.find(method, path)
    reply = refusal(caught.value)
    assert (reply.status, reply.headers["Allow"]) == (405, ", ".join(allowed))


def test_a_full_queue_is_503_or_what_a_room_says() -> None:
    error = QueueFull("full", retry_after_s=0.2)
    assert refusal(error).status == 503
    reply = refusal(error, queue_full=429)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
