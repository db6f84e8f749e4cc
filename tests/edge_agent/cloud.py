"""Small real servers that stand for the cloud: an OCI registry over HTTP and a fleet service over gRPC; and artifacts.

They keep to the protocols and can be told to misbehave in the ways that networks, disks and attackers do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import onnx
from aiohttp import web

from edge_agent.policy.model_state import Release
from penstock.artifact import golden, manifests
from penstock.artifact.certificates import Certificate
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Descriptor, preprocessing_digest
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc
from tests.factories import certificate, linear_model, variant_spec

MODEL = "toy"
SURE = np.array([[9, 0, 0, 0]], np.float32)
UNSURE = np.zeros((1, 4), np.float32)


def onnx_model(path: Path, *, seed: int, padding_bytes: int = 0) -> np.ndarray[Any, Any]:
    """A linear classifier, x [N, 4] -> logits [N, 3]; returns its weights. ``padding_bytes`` makes the file larger."""
    rng = np.random.default_rng(seed)
    weights = (np.eye(4, 3) + rng.normal(size=(4, 3)) * 0.01).astype(np.float32)
    model = linear_model(weights)
    model.doc_string = rng.bytes(padding_bytes // 2).hex()
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return weights


def draft(directory: Path, role: str, target: str, *, seed: int, lies: bool = False, padding_bytes: int = 0,
          model: str = MODEL) -> VariantDraft:  # fmt: skip
    """A variant; ``lies`` makes golden vectors that the weights do not reproduce."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{role}-{target}.onnx"
    weights = onnx_model(path, seed=seed, padding_bytes=padding_bytes)
    x = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    vectors = golden.encode(golden.Golden(inputs={"x": x}, outputs={"logits": x @ weights + (1.0 if lies else 0.0)}))
    spec = variant_spec(role, model=model, target=target, preprocessing={"scale": 1.0})
    return VariantDraft(spec=spec, weights=path, golden=vectors)


def certificate_for(edge_digest: str, cloud_digest: str, *, threshold: float = 0.9) -> Certificate:
    return certificate(
        model=MODEL, edge_digest=edge_digest, cloud_digest=cloud_digest, threshold=threshold,
        preprocessing_digest=preprocessing_digest({"scale": 1.0}),
    )  # fmt: skip


def build(
    directory: Path, tag: str, *, seed: int, targets: tuple[str, ...] = ("any",), certified: str = "edge",
    lies: bool = False, padding_bytes: int = 0, model: str = MODEL,
) -> Layout:  # fmt: skip
    """An artifact with an edge variant per target and a cloud variant.

    Args:
        certified: "edge" certifies every edge variant, "other" attaches a certificate for other digests, "" none.
    """
    layout = Layout.create(directory / tag)
    drafts = [
        draft(directory / f"{tag}-files", "edge", target, seed=seed + 10 * i, lies=lies, padding_bytes=padding_bytes,
              model=model)
        for i, target in enumerate(targets)
    ]  # fmt: skip
    artifact = layout.pack([*drafts, draft(directory / f"{tag}-files", "cloud", "cpu", seed=99, model=model)], tag=tag)
    cloud = artifact.variant("cloud").digest
    if certified == "edge":
        for target in targets:
            layout.attach_certificate(certificate_for(artifact.variant("edge", target=target).digest, cloud))
    elif certified == "other":
        wrong = certificate_for("sha256:" + "1" * 64, cloud)
        layout.attach(manifests.CERTIFICATE, msgspec.json.encode(wrong), title="certificate.json")
    return layout


def release_of(layout: Layout, target: str = "") -> Release:
    """What a fleet service names: the first certificate, or the newest of a target's edge variant; "" for none."""
    if target:
        newest = layout.certificate_for(layout.artifact().variant("edge", target=target).digest)
        certificate = newest[0] if newest else ""
    else:
        found = layout.referrers(manifests.CERTIFICATE)
        certificate = found[0].digest if found else ""
    return Release(version=layout.tag, artifact_digest=layout.digest, certificate_digest=certificate)


@dataclass
class FakeRegistry:
    """The pull side of the OCI distribution protocol for any number of layouts.

    Attributes:
        requests: (path, Range header) of every request, in order.
        replaced: other bytes for a digest: tampered with, truncated, rotten.
        cut_after: digest -> bytes after which the connection is cut, once.
        answers: digest -> responses that come first, once each.
        gate: digest -> (bytes, event): the rest waits for the event.
        has_ranges: False ignores Range, as simple servers do.
    """

    layouts: list[Layout] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    replaced: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    gate: dict[str, tuple[int, asyncio.Event]] = field(default_factory=dict)
    has_ranges: bool = True
    url: str = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def asked_for(self, digest: str) -> list[str]:
        """Range headers of the requests for a blob or manifest."""
        return [header for path, header in self.requests if path.endswith(digest)]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[FakeRegistry]:
        app = web.Application()
        app.router.add_get("/v2/{name}/{kind:manifests|blobs}/{digest}", self._get)
        app.router.add_get("/v2/{name}/referrers/{digest}", self._referrers)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _referrers(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, ""))
        entries = [
            Descriptor(media_type=manifests.MANIFEST, digest=found.digest, size=layout.blobs.size_bytes(found.digest),
                       artifact_type=found.kind)
            for layout in self.layouts if layout.digest == request.match_info["digest"]
            for found in layout.referrers(request.query.get("artifactType"))
        ]  # fmt: skip
        index = manifests.Index(schema_version=2, media_type=manifests.INDEX, manifests=entries)
        return web.Response(body=manifests.canonical_json(index), content_type=manifests.INDEX)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        self.requests.append((request.path, request.headers.get("Range", "")))
        if self.answers.get(digest):
            status, headers = self.answers[digest].pop(0)
            return web.Response(status=status, headers=headers)
        data = self._bytes(digest)
        if data is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if not self.has_ranges or not start:
            return await self._stream(request, digest, data, 0)
        if start >= len(data):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        return await self._stream(request, digest, data, start)

    async def _stream(self, request: web.Request, digest: str, data: bytes, start: int) -> web.StreamResponse:
        headers = {"Content-Length": str(len(data) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        cut = self.cut_after.pop(digest, None)
        stop, event = self.gate.get(digest, (len(data), None))
        end = min(len(data), max(stop, start)) if cut is None else cut
        for at in range(start, end, 65536):
            await response.write(data[at : min(at + 65536, end)])
        if cut is not None:
            assert request.transport is not None
            request.transport.close()
            return response
        if event is not None:
            await event.wait()
            await response.write(data[end:])
        await response.write_eof()
        return response

    def _bytes(self, digest: str) -> bytes | None:
        if digest in self.replaced:
            return self.replaced[digest]
        for layout in self.layouts:
            if layout.blobs.has(digest):
                return layout.blobs.path(digest).read_bytes()
        return None


class FakeFleet(fleet_pb2_grpc.FleetServicer):
    """The device side of the fleet service: remembers heartbeats, counts each record once.

    Attributes:
        distrusts: models whose answers no device may keep.
        loses_replies: DeliverOutcomes keeps the records, and the reply is lost.
        counts_instances: False for a core of before, which takes all records of a device for one sequence.
        must_renew: agents are told that another one has their instance.
        durable: highest sequence that is kept, by device and instance.
    """

    def __init__(self) -> None:
        self.heartbeats: list[fleet_pb2.HeartbeatRequest] = []
        self.desired: dict[str, Release] = {}
        self.records: dict[tuple[str, str, int], fleet_pb2.OutcomeRecord] = {}
        self.durable: dict[tuple[str, str], int] = {}
        self.counts_instances = True
        self.must_renew = False
        self.distrusts: set[str] = set()
        self.deliveries = 0
        self.loses_replies = False
        self.next_heartbeat_s = 0.2
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def last(self, model: str = MODEL) -> fleet_pb2.ReportedModel:
        """What the device reported of a model in its last heartbeat."""
        found = [entry for entry in self.heartbeats[-1].models if entry.model == model] if self.heartbeats else []
        return found[0] if found else fleet_pb2.ReportedModel()

    def phases(self, model: str = MODEL) -> list[str]:
        """Phases in the order in which they were first reported."""
        names = [
            fleet_pb2.UpdatePhase.Name(entry.phase)
            for beat in self.heartbeats for entry in beat.models if entry.model == model
        ]  # fmt: skip
        return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]

    def rows(self, artifact_digest: str | None = None) -> int:
        return sum(
            record.counts.requests
            for record in self.records.values()
            if artifact_digest in (None, record.artifact_digest)
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[FakeFleet]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    async def Heartbeat(self, request: fleet_pb2.HeartbeatRequest, context: Any) -> fleet_pb2.HeartbeatResponse:  # noqa: N802
        self.heartbeats.append(request)
        models = [
            fleet_pb2.DesiredModel(
                model=model, version=release.version, artifact_digest=release.artifact_digest,
                certificate_digest=release.certificate_digest, is_distrusted=model in self.distrusts,
            )
            for model, release in self.desired.items()
        ]  # fmt: skip
        return fleet_pb2.HeartbeatResponse(
            models=models,
            next_heartbeat_s=self.next_heartbeat_s,
            counts_instances=self.counts_instances,
            must_renew_instance=self.must_renew,
        )

    async def DeliverOutcomes(  # noqa: N802
        self, request: fleet_pb2.DeliverOutcomesRequest, context: Any
    ) -> fleet_pb2.DeliverOutcomesResponse:
        self.deliveries += 1
        key = (request.device_id, request.instance if self.counts_instances else "")
        for record in request.records:
            if record.sequence > self.durable.get(key, 0):
                self.records[*key, record.sequence] = record
                self.durable[key] = record.sequence
        if self.loses_replies:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
        return fleet_pb2.DeliverOutcomesResponse(durable_sequence=self.durable.get(key, 0))
