"""The core's HTTP interface on one server: Open Inference Protocol and OCI registry under ``/v2``, OpenAI's API under
``/v1``, and ``/metrics``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cloud_core.api.exposition.metrics import Metrics
from cloud_core.api.oci import OciApi
from cloud_core.api.page import Page
from cloud_core.api.seeing import Seeing
from cloud_core.api.traffic import PATH as MODELS_PATH
from cloud_core.serving.dataplane import SERVER_NAME, DataPlane
from cloud_core.serving.embeddings import Embeddings
from cloud_core.serving.texts import TextPlane
from cloud_core.settings import HttpSettings
from penstock.http.extensions import Extensions
from penstock.http.generate import EXTENSION, Generate
from penstock.http.kserve import KServe
from penstock.http.oip import Oip
from penstock.http.openai import OpenAi
from penstock.http.openapi import with_document
from penstock.http.operations import OPEN_METRICS, TEXT, Operation, Raw
from penstock.http.overview import Overview
from penstock.http.routes import Reply, Request, Route
from penstock.http.server import HttpLimits, HttpServer
from penstock.policy.access import Action
from penstock.wire.inference import MODEL_REPOSITORY

_PATHS = {"registry": "/v2/", "garbage collection": "/v2/_penstock/registry/gc", "operators": MODELS_PATH}
_IS_REGISTRY = {"Docker-Distribution-Api-Version": "registry/2.0"}  # the registry protocol asks for it at /v2/
_METRICS = Operation(
    summary="Tell all metrics, for Prometheus",
    group="server",
    answers={TEXT: Raw("Prometheus's text format."), OPEN_METRICS: Raw("OpenMetrics, where Accept asks for it.")},
)


def http_server(
    plane: DataPlane,
    texts: TextPlane,
    embeddings: Embeddings,
    oci: OciApi,
    ours: Sequence[Route],
    seeing: Seeing,
    metrics: Metrics,
    extensions: Extensions,
    settings: HttpSettings,
    *,
    body_s: float,
) -> HttpServer:
    """Make the core's server, which does not listen yet.

    Args:
        texts: answers OpenAI's API and the generate extension.
        embeddings: answers with vectors of texts.
        extensions: what of the server clients may use and change.
        ours: rows for our own commands, under /v2/_penstock.
        seeing: tells commands and browsers what the core does.
        body_s: how long a request's body may take to arrive.
    """
    oip = Oip(
        plane,
        asyncio.get_running_loop().time,
        name=SERVER_NAME,
        queue_full_status=settings.queue_full_status,
        server_headers=_IS_REGISTRY,
        extensions=(MODEL_REPOSITORY, EXTENSION, *extensions.names),
        regions=extensions.regions,
    )

    generate = Generate(texts, queue_full_status=settings.queue_full_status)
    openai = OpenAi(texts, embedder=embeddings, others=plane, queue_full_status=settings.queue_full_status)

    page = Page(seeing, plane.authenticate, name="Penstock core").tell
    # the inference protocol goes first: what it has under /v2 is reserved, and never a repository's name
    routes = [
        *Overview(plane, name=SERVER_NAME, paths=_PATHS, page=page).routes(),
        *oip.routes(),
        *extensions.routes(),
        *generate.routes(),
        *openai.routes(),
        *KServe(plane, queue_full_status=settings.queue_full_status).routes(),
        _metrics_row(metrics),
        *ours,
        *seeing.routes(),
        *oci.routes(),
    ]
    return HttpServer(
        with_document(routes, title="Penstock core"),
        oip,
        _limits(settings, body_s),
        authenticate=plane.authenticate,
        takes_certificates=plane.takes_certificates,
    )


def _limits(settings: HttpSettings, body_s: float) -> HttpLimits:
    return HttpLimits(
        max_body_bytes=settings.max_body_bytes,
        max_body_setting="http.max_body_bytes",
        max_header_bytes=settings.max_header_bytes,
        keepalive_s=settings.keepalive_s,
        body_s=body_s,
    )


def _metrics_row(metrics: Metrics) -> Route:
    async def scrape(request: Request) -> Reply:
        body, content_type = metrics.render(request.headers.get("Accept", ""))
        return Reply(body=body, headers={"Content-Type": content_type})

    return Route("GET", "/metrics", scrape, Action.SCRAPE, says=_METRICS)
