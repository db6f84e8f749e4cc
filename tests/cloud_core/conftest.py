"""Small real artifacts (the echo engine), and a registry behind a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cloud_core.api.oci import OciApi
from cloud_core.registry.registry import Registry
from cloud_core.registry.settings import RegistrySettings
from cloud_core.state import Database
from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.http.server import HttpLimits, HttpServer
from penstock.wire import tensors
from penstock.wire.tensors import TensorSpec
from tests.factories import certificate_for, echo_spec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
MakeLayout = Callable[..., Layout]


class Clock:
    """The control plane's clock, moved by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A registry on a loopback port."""

    registry: Registry
    url: str
    port: int


def make_spec(model: str, role: manifests.Role, target: str) -> VariantSpec:
    return echo_spec(role, model=model, target=target, preprocessing={"scale": 16})


def make_certificate(layout: Layout, **changes: object) -> Certificate:
    return certificate_for(layout, **changes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_layout(tmp_path: Path) -> MakeLayout:
    def make(
        tag: str, *, model: str = "digits", certified: bool = True, edge_target: str = "any",
        cloud_golden: bytes | None = None,
    ) -> Layout:  # fmt: skip
        """Same arguments, same digests; another tag, other weights."""
        weights = tmp_path / f"{model}-{tag}.json"
        weights.write_bytes(msgspec.json.encode([X]) + b" " * (1 + sum(tag.encode())))
        layout = Layout.create(tmp_path / f"layout-{model}-{tag}")
        edge = VariantDraft(spec=make_spec(model, "edge", edge_target), weights=weights, golden=tensors.pack({}))
        cloud = VariantDraft(spec=make_spec(model, "cloud", "cpu"), weights=weights, golden=cloud_golden)
        layout.pack([edge, cloud], tag=tag)
        if certified:
            layout.attach_certificate(make_certificate(layout))
        return layout

    return make


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "core" / "state.db")
    yield opened
    opened.close()


@pytest.fixture
def registry(tmp_path: Path, database: Database, clock: Clock) -> Registry:
    settings = RegistrySettings(max_uploads=3, max_blob_bytes=32 * 1024 * 1024)
    return Registry.open(tmp_path / "core", database, settings, now=clock)


async def put_layout(registry: Registry, layout: Layout, tag: str | None = None) -> str:
    """Store a layout without HTTP; return the artifact's digest."""
    model = layout.artifact().model
    for descriptor in layout.reachable():
        data = layout.blobs.path(descriptor.digest).read_bytes()
        registry.store.put(data)
        if descriptor.media_type in (manifests.INDEX, manifests.MANIFEST):
            await registry.put_manifest(model, descriptor.digest, descriptor.media_type, data)
    data = layout.blobs.read(layout.digest)
    await registry.put_manifest(model, tag or layout.tag, manifests.INDEX, data)
    return layout.digest


@pytest.fixture
def put() -> Callable[..., object]:
    return put_layout


@pytest.fixture
async def served(registry: Registry, clock: Clock) -> AsyncIterator[Served]:
    async def base(request: Request) -> Reply:
        return json_reply({})

    async def nothing(prepared: None, body: bytes) -> bytes:
        raise AssertionError("the registry has no plain requests")

    class Lane:
        prepare = staticmethod(lambda target, headers: None)
        answer = staticmethod(nothing)

    routes = [Route("GET", "/v2/", base), *OciApi(registry, now=clock).routes()]
    limits = HttpLimits(max_body_bytes=1024, max_body_setting="none", body_s=2.0)
    server = HttpServer(routes, Lane(), limits, authenticate=lambda credential, action: "")
    address = await server.listen_tcp("127.0.0.1", 0, setting="--http-port")
    yield Served(registry=registry, url=f"http://{address}", port=int(address.rpartition(":")[2]))
    await server.stop(1.0)
