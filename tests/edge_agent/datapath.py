"""A data path to test: a tiny real model, a real cloud over gRPC that can misbehave, and everything between them.

The model is the identity on three classes, so a test chooses confidence by choosing the input. The cloud's logits are
100 higher, so an answer shows where it comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.embeddings import Embeddings
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.hosting import Hosted, Hosting
from edge_agent.serving.load_plan import LoadPlan
from edge_agent.serving.spans import Spans
from edge_agent.serving.texts import TextPlane
from edge_agent.settings import CascadeSettings, EscalationSettings, LimitsSettings
from penstock.artifact.certificates import Certificate, Subject
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import (
    Descriptor,
    Variant,
    VariantSpec,
    preprocessing_digest,
    shares_file,
    subject_of,
)
from penstock.artifact.variant_files import VariantFiles, verified_files
from penstock.generation import tokenizer
from penstock.hosting.generation.settings import GenerationSettings
from penstock.rpc import codec
from penstock.rpc.pb import oip_pb2, oip_pb2_grpc
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse, Parameter
from penstock.wire.tensors import TensorSpec
from tests import factories
from tests.factories import onnx_model

MODEL = "toy"
DIGEST = "sha256:" + "a" * 64
EDGE = "sha256:" + "e" * 64
CLOUD = "sha256:" + "c" * 64
OTHER_CLOUD = "sha256:" + "d" * 64
CERTIFICATE = "sha256:" + "f" * 64
NOWHERE = "grpc://127.0.0.1:9"
FROM_CLOUD = 100.0

SURE = [9.0, 0.0, 0.0]
UNSURE = [0.1, 0.0, 0.0]
NAN = [float("nan"), 0.0, 0.0]

SUBJECT = Subject(model=MODEL, edge_digest=EDGE, cloud_digest=CLOUD, preprocessing_digest=preprocessing_digest({}))
INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
OUTPUTS = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 3)),)
Rows = NDArray[np.float32]


def rows(*given: list[float]) -> Rows:
    return np.array(given, dtype=np.float32)


def model_file(path: Path, *, batch: int | str = "n") -> Path:
    """x [batch, 3] -> logits = x."""
    identity = helper.make_node("Identity", ["x"], ["logits"])
    onnx.save(onnx_model([identity], inputs={"x": [batch, 3]}, outputs={"logits": [batch, 3]}), path)
    return path


def variant_spec(**changes: Any) -> VariantSpec:
    values = {"model": MODEL, "inputs": INPUTS, "outputs": OUTPUTS, "max_batch": 64}
    return factories.variant_spec(**values | changes)


def certificate(*, threshold: float = 0.9, **changes: Any) -> Certificate:
    values = {
        "model": MODEL,
        "edge_digest": EDGE,
        "cloud_digest": CLOUD,
        "harm": "disagreement",
        "audit_max_harm": 0.02,
    }
    return factories.certificate(threshold=threshold, **values | changes)


def load_plan(
    directory: Path,
    *,
    certified: Certificate | None,
    spec: VariantSpec | None = None,
    golden: bytes | None = None,
    batch: int | str = "n",
    digest: str = DIGEST,
    version: str = "v1",
) -> LoadPlan:
    weights = Descriptor(media_type="application/octet-stream", digest=DIGEST, size=1)
    return LoadPlan(
        model=MODEL,
        version=version,
        artifact_digest=digest,
        variant=Variant(digest=EDGE, spec=spec or variant_spec(), weights=weights, golden=None),
        files=VariantFiles(weights=model_file(directory / "toy.onnx", batch=batch), golden=golden),
        certificate_digest=CERTIFICATE if certified else "",
        certificate=certified,
        subject=SUBJECT,
    )


@dataclass
class Cloud(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """An inference server whose behaviour is switched by plain attributes."""

    target: str = ""
    variant: str = CLOUD
    answer: Callable[[Rows], Rows] = lambda x: x + np.float32(FROM_CLOUD)
    further: Mapping[str, Rows] = field(default_factory=dict)  # outputs beside the logits
    failure: grpc.StatusCode | None = None
    is_ready: bool = True
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # answers wait for it; set at first
    calls: list[oip_pb2.ModelInferRequest] = field(default_factory=list)
    remaining_s: list[float | None] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def seen_rows(self) -> list[int]:
        """Rows of each call."""
        return [call.inputs[0].shape[0] for call in self.calls]

    async def ModelInfer(self, request: oip_pb2.ModelInferRequest, context: Any) -> oip_pb2.ModelInferResponse:  # noqa: N802
        self.calls.append(request)
        self.remaining_s.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            await context.abort(self.failure, "told to fail")
        decoded = codec.decode_request(request)
        parameters: dict[str, Parameter] = {"variant": self.variant} if self.variant else {}
        response = InferResponse(
            model=request.model_name,
            outputs={"logits": self.answer(decoded.request.inputs["x"].astype(np.float32)), **self.further},
            parameters=parameters,
        )
        return codec.encode_response(response, decoded)

    async def ModelReady(self, request: oip_pb2.ModelReadyRequest, context: Any) -> oip_pb2.ModelReadyResponse:  # noqa: N802
        return oip_pb2.ModelReadyResponse(ready=self.is_ready and self.failure is None)


@asynccontextmanager
async def running_cloud(**switches: Any) -> AsyncIterator[Cloud]:
    cloud = Cloud(**switches)
    server = grpc.aio.server()
    oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(cloud, server)
    cloud.target = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield cloud
    finally:
        cloud.gate.set()
        await server.stop(None)


@dataclass(frozen=True)
class DataPath:
    """Everything between a request and its answer."""

    hosting: Hosting
    hosted: Hosted
    dataplane: DataPlane
    escalator: Escalator
    outcomes: Outcomes

    async def infer(self, x: Rows, *, timeout_s: float | None = None, **parameters: Parameter) -> InferResponse:
        request = InferRequest(model=MODEL, inputs={"x": x}, parameters=parameters)
        return await self.ask(request, self.context().within(timeout_s))

    async def ask(self, request: InferRequest, context: RequestContext | None = None) -> InferResponse:
        context = context or self.context()
        with self.dataplane.admit(context, request.model, request.version, 0) as ticket:
            return await self.dataplane.infer(ticket, context, request)

    def context(self) -> RequestContext:
        """Of a request that arrives now."""
        return RequestContext(arrived_at=asyncio.get_running_loop().time())


@asynccontextmanager
async def data_path(
    directory: Path,
    core: str = NOWHERE,
    *,
    plan: LoadPlan | None = None,
    certified: Certificate | None = None,
    is_certified: bool = True,
    cascade: CascadeSettings | None = None,
    escalation: EscalationSettings | None = None,
    limits: LimitsSettings | None = None,
    random: Callable[[], float] = lambda: 1.0,
    spans: Spans | None = None,
) -> AsyncIterator[DataPath]:
    """A data path that serves ``plan``: by default the toy model with a certificate, and the audit draws nothing."""
    limits = limits or LimitsSettings()
    outcomes = Outcomes(now=lambda: 1000.0)
    hosting = Hosting(outcomes, max_queue_rows=limits.max_queue_rows)
    plan = plan or load_plan(directory, certified=(certified or certificate()) if is_certified else None)
    hosted = await hosting.prepare(plan)
    hosting.activate(hosted)
    escalator = Escalator(core, escalation or EscalationSettings(breaker_open_s=0.01), spans=spans)
    dataplane = DataPlane(hosting, escalator, cascade or CascadeSettings(), limits, random=random)
    auditor = asyncio.create_task(dataplane.auditor.run())
    try:
        yield DataPath(hosting, hosted, dataplane, escalator, outcomes)
    finally:
        auditor.cancel()
        await asyncio.gather(auditor, return_exceptions=True)
        await escalator.close()
        await hosting.close()


def texts_of(plane: DataPlane) -> TextPlane:
    """A plane for texts beside that for arrays, whose cloud is not there."""
    settings, limits = EscalationSettings(), GenerationSettings()
    cloud = CloudTexts("http://127.0.0.1:9", settings, limits.remote)
    return TextPlane(plane, cloud, CascadeSettings(), limits.limits, max_audits=settings.max_text_audits)


def planes_of(plane: DataPlane) -> tuple[DataPlane, TextPlane, Embeddings]:
    """What an agent's HTTP server serves."""
    return plane, texts_of(plane), Embeddings(plane, CascadeSettings())


def text_plan(layout: Layout, directory: Path) -> LoadPlan:
    """How an agent loads the edge variant of a language model that was not certified."""
    artifact = layout.artifact()
    variant = artifact.variant("edge")
    return LoadPlan(
        model=artifact.model,
        version="v1",
        artifact_digest=artifact.digest,
        variant=variant,
        files=verified_files(variant, layout.blobs, directory / "unpacked"),
        certificate_digest="",
        certificate=None,
        subject=subject_of(artifact, variant),
        shares_tokenizer=shares_file(artifact, variant, tokenizer.FILE),
    )
