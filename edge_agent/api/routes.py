"""The agent's HTTP interface: Open Inference Protocol under ``/v2``, ``/metrics`` and ``/status``, on one server.

TCP has no authentication, so it is off by default; the unix socket's mode decides who may ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from edge_agent.api.metrics import CONTENT_TYPE, Metrics
from edge_agent.serving.dataplane import DataPlane
from penstock.http.oip import Oip
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.http.server import HttpLimits, HttpServer

SERVER_NAME = "penstock-agent"


def http_server(dataplane: DataPlane, status: Callable[[], Mapping[str, Any]], *, body_s: float) -> HttpServer:
    """Make the agent's server, which does not listen yet.

    Args:
        status: gives the document of ``GET /status``.
        body_s: how long a request's body may take to arrive.
    """
    metrics = Metrics(dataplane)
    oip = Oip(dataplane, asyncio.get_running_loop().time, name=SERVER_NAME)

    async def scrape(request: Request) -> Reply:
        return Reply(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def tell(request: Request) -> Reply:
        return json_reply(status())

    routes = [*oip.routes(), Route("GET", "/metrics", scrape), Route("GET", "/status", tell)]
    limits = HttpLimits(
        max_body_bytes=dataplane.limits.max_body_bytes, max_body_setting="limits.max_body_bytes", body_s=body_s
    )
    return HttpServer(routes, oip, limits, authenticate=dataplane.authenticate)
