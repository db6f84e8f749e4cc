"""What a server answers to people and scripts that look around: ``/``, its models, and what each has answered.

Rows of the table for whatever data plane there is behind; decides nothing. The statistics have the form of Triton's
extension (``penstock.wire.model_documents``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version as version_of
from typing import Any, Protocol

from penstock.errors import NotFound, PermissionDenied
from penstock.http import shapes
from penstock.http.operations import HTML, JSON, Operation, Raw
from penstock.http.routes import Handler, Reply, Request, Route, json_reply
from penstock.policy.access import Action
from penstock.rest.metadata import metadata_document
from penstock.wire.inference import ModelMetadata, ModelState, ModelStatistics
from penstock.wire.model_documents import statistics_documents

_PATHS = {
    "ready": "/v2/health/ready",
    "live": "/v2/health/live",
    "models": "/v2/models",
    "statistics": "/v2/models/stats",
    "metadata": "/v2/models/{model}",
    "infer": "/v2/models/{model}/infer",
    "generate": "/v2/models/{model}/generate",
    "openai": "/v1/models",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
}
_HOME = Operation(summary="Say what answers here, and where to go on", group="server", answers={JSON: dict[str, Any]})
_HOME_AND_PAGE = replace(
    _HOME,
    answers={**_HOME.answers, HTML: Raw("A page of what the server does, for browsers; it may need a credential.")},
    also={401: "The page needs a credential that may read metrics."},
)
_MODELS = Operation(summary="List models and versions with their state", group="models", answers={JSON: shapes.Models})
_STATISTICS = Operation(
    summary="Say what was answered since the server began", group="models", answers={JSON: shapes.Statistics}
)
STATS = "stats"
_STATS = ("", "/{model}", "/{model}/versions/{version}")


class Plane(Protocol):
    """What is looked at."""

    @property
    def is_ready(self) -> bool: ...

    def model_state(self, model: str, version: str, /) -> ModelState: ...

    def metadata(self, model: str, version: str, /) -> ModelMetadata: ...

    def index(self) -> Sequence[ModelState]: ...

    def statistics(self) -> Sequence[ModelStatistics]:
        """Say what each version has answered, in the order of :meth:`index`."""
        ...


class Overview:
    """Answers these requests from one data plane."""

    def __init__(
        self, plane: Plane, *, name: str, paths: Mapping[str, str] | None = None, page: Handler | None = None
    ) -> None:
        """
        Args:
            name: of the server.
            paths: what this server has beside what all have, by what it is for.
            page: answers browsers at ``/``; None gives them the document that everybody gets.
        """
        self._page = page
        self._plane = plane
        self._home = {"name": name, "version": version_of("penstock"), "paths": {**_PATHS, **(paths or {})}}

    def routes(self) -> list[Route]:
        """List the rows. They go before those of the protocol, to which ``stats`` would be a model's name alone."""
        ask = Action.INFER
        return [
            Route("GET", "/", self._tell, says=_HOME if self._page is None else _HOME_AND_PAGE),
            Route("GET", "/v2/models", self._models, ask, says=_MODELS),
            Route("GET", "/v2/models/", self._models, ask, says=_MODELS),
            *(Route("GET", f"/v2/models{path}/stats", self._stats, ask, says=_STATISTICS) for path in _STATS),
        ]

    async def _tell(self, request: Request) -> Reply:
        if self._page is not None and wants_html(request.headers.get("Accept", "")):
            return await self._page(request)
        return json_reply({**self._home, "ready": self._plane.is_ready})

    async def _models(self, request: Request) -> Reply:
        return json_reply({"models": [state_document(state) for state in self._plane.index()]})

    async def _stats(self, request: Request) -> Reply:
        model, version = request.names.get("model", ""), request.names.get("version", "")
        document: dict[str, Any] = {"model_stats": statistics_documents(self._plane, model, version)}
        if not model:  # the path is also that of the metadata of a model with this name, if there is one
            with contextlib.suppress(NotFound, PermissionDenied):
                document = {**metadata_document(self._plane.metadata(STATS, "")), **document}
        return json_reply(document)


def wants_html(accept: str) -> bool:
    """Say whether a client asks for a page, as browsers do; one that takes anything gets the document."""
    return any(part.partition(";")[0].strip().lower() == HTML for part in accept.split(","))


def state_document(state: ModelState) -> dict[str, str | bool | float]:
    """Write one line of the index; what is not known of a version is left out."""
    document: dict[str, str | bool | float] = {
        "name": state.model,
        "version": state.version,
        "state": state.state,
        "reason": state.reason,
    }
    if state.is_default is not None:
        document["is_default"] = state.is_default
    if state.percent is not None:
        document["percent"] = state.percent
    if state.is_certified is not None:
        document["is_certified"] = state.is_certified
    return document
