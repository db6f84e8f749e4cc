"""The OpenAPI document of a server, made of its table of routes: what is served is what is described.

Pure, but for the row that answers with it. Words and shapes are each row's (``penstock.http.operations``).
Source: OpenAPI Specification 3.1.0; JSON Schema 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version as version_of
from typing import Any

import msgspec

from penstock.http.operations import JSON, Operation, Raw, Shape
from penstock.http.routes import Reply, Request, Route

PATH = "/openapi.json"
_SAYS = Operation(
    summary="Describe everything that is served here, as OpenAPI", group="server", answers={JSON: dict[str, Any]}
)
_BEARER = "bearer"
_NAME = re.compile(r"\{(\w+)(\*?)\}")
_SEVERAL = "One or more segments: slashes belong to it."
_COMMON: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "RequestId": ("x-request-id", "Comes back with the answer.", {"type": "string"}),
    "TimeoutMs": (
        "x-request-timeout-ms",
        "Milliseconds that the client waits, from the arrival of the request.",
        {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,12})?$"},
    ),
    "Traceparent": ("traceparent", "W3C trace context that log lines of the request name.", {"type": "string"}),
}


def with_document(routes: Iterable[Route], *, title: str) -> list[Route]:
    """Add the row that describes all rows, itself included. It needs no credential: it names no model."""
    rows = list(routes)

    @cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(rows, title=title))

    async def tell(request: Request) -> Reply:
        return Reply(body=encoded(), headers={"Content-Type": JSON})

    says = Operation(
        summary="Describe everything that is served here, as OpenAPI", group="server", answers={JSON: dict}
    )
    rows.append(Route("GET", PATH, tell, says=says))
    return rows


def document(routes: Sequence[Route], *, title: str) -> dict[str, Any]:
    """Describe rows. Of rows for the same method and path the first one counts, as it does when they are asked; rows
    that say nothing of themselves are left out.
    """
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.says is not None:
            path = _NAME.sub(r"{\1}", route.pattern)
            paths.setdefault(path, {}).setdefault(route.method.lower(), _operation(route, route.says, schemas))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version_of("penstock"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted({route.says.group for route in routes if route.says is not None})],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas.components(),
            "parameters": {name: _header(*told) for name, told in _COMMON.items()},
            "securitySchemes": {_BEARER: {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas:
    """Schemas of shapes; named types become components."""

    def __init__(self) -> None:
        self._components: dict[str, Any] = {}

    def of(self, shape: Shape) -> dict[str, Any]:
        if isinstance(shape, Raw):
            return {"description": shape.about}
        (schema,), found = msgspec.json.schema_components([shape], ref_template="#/components/schemas/{name}")
        for name, component in found.items():
            if self._components.setdefault(name, component) != component:
                raise ValueError(f"two different shapes are called {name}")
        return schema

    def components(self) -> dict[str, Any]:
        return dict(sorted(self._components.items()))


def _operation(route: Route, says: Operation, schemas: _Schemas) -> dict[str, Any]:
    parameters = [
        *(_path(name, several) for name, several in _NAME.findall(route.pattern)),
        *({"name": n, "in": "query", "schema": {"type": "string"}, "description": d} for n, d in says.query.items()),
        *(_header(name, about, {"type": "string"}) for name, about in says.headers.items()),
        *({"$ref": f"#/components/parameters/{name}"} for name in _COMMON),
    ]
    told: dict[str, Any] = {
        "operationId": _id(route),
        "summary": says.summary,
        "tags": [says.group],
        "parameters": parameters,
        "responses": _responses(route, says, schemas),
        "security": [] if route.may is None else [{_BEARER: []}, {}],
    }
    if says.asks:
        told["requestBody"] = {"required": says.needs_body, "content": _content(says.asks, schemas)}
    return told


def _responses(route: Route, says: Operation, schemas: _Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer."}
    if says.answers:
        answer["content"] = _content(says.answers, schemas)
    refused = {"content": {JSON: {"schema": schemas.of(says.refusal)}}}
    why: dict[int, str] = {}
    if says.asks or says.query or says.headers:
        why[400] = "The request is wrong; the message says where."
    if route.may is not None:
        why[401] = "No credential, or one that nobody knows."
        why[403] = "The credential does not allow this."
    if "{" in route.pattern:
        why[404] = "There is no such thing; the message names those that exist where it may."
    if says.asks:
        why[413] = "The body is larger than the limit."
        why[503] = "Not now; Retry-After says when."
        why[504] = "The deadline passed, or cannot be met; nothing was executed."
    return {
        str(says.status): answer,
        **{str(status): {"description": about} for status, about in says.also.items()},
        **{str(status): {"description": about, **refused} for status, about in why.items()},
        "default": {"description": "Refused; the message says why.", **refused},
    }


def _content(bodies: Mapping[str, Shape], schemas: _Schemas) -> dict[str, Any]:
    return {media_type: {"schema": schemas.of(shape)} for media_type, shape in bodies.items()}


def _path(name: str, several: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }
    return told | ({"description": _SEVERAL} if several else {})


def _header(name: str, about: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": about, "schema": dict(schema)}


def _id(route: Route) -> str:
    end = ["slash"] if route.pattern.endswith("/") else []
    return "_".join([route.method.lower(), *re.findall(r"\w+", route.pattern), *end])
