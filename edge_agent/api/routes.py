"""The agent's HTTP interface: Open Inference Protocol under ``/v2``, OpenAI's API under ``/v1``, ``/metrics`` and
``/status``, on one server.

TCP has no authentication, so it is off by default; the unix socket's mode decides who may ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from edge_agent.api.metrics import CONTENT_TYPE, Metrics
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.embeddings import Embeddings
from edge_agent.serving.texts import TextPlane
from penstock.http.generate import EXTENSION, Generate
from penstock.http.kserve import KServe
from penstock.http.oip import Oip
from penstock.http.openai import OpenAi
from penstock.http.openapi import with_document
from penstock.http.operations import JSON, TEXT, Operation, Raw
from penstock.http.overview import Overview
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.http.server import HttpLimits, HttpServer

SERVER_NAME = "penstock-agent"
_PATHS = {"status": "/status"}
_METRICS = Operation(
    summary="Tell all metrics, for Prometheus", group="server", answers={TEXT: Raw("Prometheus's text format.")}
)
_STATUS = Operation(summary="Say what runs on the device, and why", group="server", answers={JSON: dict[str, Any]})
_UNBLOCK = Operation(summary="Let a model try again what failed", group="models", answers={JSON: dict[str, str]})


def http_server(
    dataplane: DataPlane,
    texts: TextPlane,
    embeddings: Embeddings,
    status: Callable[[], Mapping[str, Any]],
    unblock: Callable[[str], None],
    *,
    body_s: float,
    unclean_ends: Callable[[], int] = lambda: 0,
) -> HttpServer:
    """Make the agent's server, which does not listen yet.

    Args:
        texts: answers OpenAI's API and the generate extension.
        embeddings: answers with vectors of texts.
        status: gives the document of ``GET /status``.
        unblock: lets a model try again what failed; ``POST /models/{model}/unblock``.
        body_s: how long a request's body may take to arrive.
        unclean_ends: tells how many agents of this data directory ended without a last flush.
    """
    metrics = Metrics(dataplane, texts, unclean_ends)
    oip = Oip(dataplane, asyncio.get_running_loop().time, name=SERVER_NAME, extensions=(EXTENSION,))

    async def scrape(request: Request) -> Reply:
        return Reply(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def tell(request: Request) -> Reply:
        return json_reply(status())

    async def try_again(request: Request) -> Reply:
        unblock(request.names["model"])
        return json_reply({"model": request.names["model"]})

    routes = [
        *Overview(dataplane, name=SERVER_NAME, paths=_PATHS).routes(),
        *oip.routes(),
        *Generate(texts).routes(),
        *OpenAi(texts, embedder=embeddings, others=dataplane).routes(),
        *KServe(dataplane).routes(),
        Route("GET", "/metrics", scrape, says=_METRICS),
        Route("GET", "/status", tell, says=_STATUS),
        Route("POST", "/models/{model}/unblock", try_again, says=_UNBLOCK),
    ]
    limits = HttpLimits(
        max_body_bytes=dataplane.limits.max_body_bytes, max_body_setting="limits.max_body_bytes", body_s=body_s
    )
    return HttpServer(with_document(routes, title="Penstock agent"), oip, limits, authenticate=dataplane.authenticate)
