"""The page of what a core and an agent serve over HTTP, as both say it themselves: they are started, and asked."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs_writer import Page, Writer

from cloud_core.api.rpc.listening.settings import GrpcSettings
from cloud_core.app import Core
from cloud_core.settings import CoreSettings, HttpSettings
from edge_agent.agent import Agent
from edge_agent.settings import AgentSettings
from penstock.http.openapi import document


def http_page(note: str) -> Page:
    """Write every path with what it does."""
    write = Writer()
    write.say(
        "# Paths over HTTP",
        note,
        "Core and agent describe what they serve in an [OpenAPI 3.1](https://spec.openapis.org/oas/v3.1.0) document, "
        "with the shapes of bodies: `curl http://127.0.0.1:8000/openapi.json`, or "
        "`curl --unix-socket AGENT.SOCK http://agent/openapi.json`. It needs no credential. These tables are made of "
        "it; [The data plane](data-plane.md) explains the protocol. A core that has tenants wants a credential where "
        "the table says so; an agent wants none.",
    )
    with tempfile.TemporaryDirectory() as scratch:
        documents = asyncio.run(_documents(Path(scratch)))
    for title, told in documents.items():
        write.say(f"## {title}")
        write.table(["group", "method and path", "what it does", "credential"], _rows(told))
    return write.page()


def _rows(told: Mapping[str, Any]) -> list[list[str]]:
    return [
        [tag["name"], f"`{method.upper()} {path}`", f"{row['summary']}.", "yes" if row["security"] else "no"]
        for tag in told["tags"]
        for path, methods in told["paths"].items()
        for method, row in methods.items()
        if tag["name"] in row["tags"]
    ]


async def _documents(directory: Path) -> dict[str, Any]:
    core = CoreSettings(data_dir=str(directory / "core"), http=HttpSettings(port=0), grpc=GrpcSettings(port=0))
    async with await Core.start(core) as running:
        served = {"Core": running.http.routes}
    agent = AgentSettings(data_dir=str(directory / "agent"), socket=str(directory / "agent.sock"))
    async with Agent(agent) as running_agent:
        served["Agent"] = running_agent.http.routes
    return {name: document(routes, title=name) for name, routes in served.items()}
