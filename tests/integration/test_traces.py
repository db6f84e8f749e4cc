"""One trace from an application's span through client, agent, core, queue and batch, as a collector receives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider

from cloud_core.app import Core
from edge_agent.api.routes import http_server
from edge_agent.serving.spans import Spans
from edge_agent.settings import EscalationSettings
from penstock import AsyncClient
from penstock.artifact.layout import Layout, VariantDraft
from penstock.process.trace_settings import TraceSettings
from penstock.process.tracing import Tracer
from tests.cloud_core.rig import core_settings, onnx_spec, push_to
from tests.collector import Collector, collecting
from tests.edge_agent.datapath import INPUTS, MODEL, OUTPUTS, SURE, UNSURE, data_path, model_file, planes_of

WAY_UP = EscalationSettings(model_version="")


def toy_layout(root: Path) -> Layout:
    """The cloud's half of the agent's toy model."""
    spec = onnx_spec(MODEL, inputs=INPUTS, outputs=OUTPUTS)
    layout = Layout.create(root / "layout")
    layout.pack([VariantDraft(spec=spec, weights=model_file(root / "cloud.onnx"))], tag="v1")
    return layout


async def traced(root: Path, short_dir: Path, collector: Collector) -> str:
    """Ask an agent for a row that stays and one that goes up, under a span of this application; its trace's id."""
    settings = TraceSettings(endpoint=collector.endpoint, share=0.0)
    spans = Spans(Tracer(settings, "penstock-agent"))
    observing = {"traces": {"endpoint": collector.endpoint, "share": 0.0}}
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("an application")
    (root / "agent").mkdir()
    async with (
        await Core.start(core_settings(root / "core", observing=observing)) as core,
        data_path(root / "agent", f"grpc://127.0.0.1:{core.grpc_port}", escalation=WAY_UP, spans=spans) as path,
    ):
        await push_to(core, toy_layout(root))
        http = http_server(*planes_of(path.dataplane), dict, lambda model: None, body_s=10.0)
        await http.listen_unix(short_dir / "a.sock")
        async with AsyncClient(f"unix://{short_dir / 'a.sock'}") as client:
            with tracer.start_as_current_span("shop") as span:
                answer = await client.infer(MODEL, {"x": np.array([SURE, UNSURE], np.float32)})
            assert answer.served_by == "mixed"
            with tracer.start_as_current_span("afterwards"):
                pass
            await client.infer(MODEL, {"x": np.array([UNSURE], np.float32)})  # under no span, and so in no trace
        await http.stop(1.0)
    spans.close()
    return f"{span.get_span_context().trace_id:032x}"


@pytest.fixture
def short_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")


async def test_a_trace_goes_from_an_application_to_the_run_in_the_core(tmp_path: Path, short_dir: Path) -> None:
    with collecting() as collector:
        trace = await traced(tmp_path, short_dir, collector)
    agent, up = collector.one(f"infer {MODEL}", penstock__served_by="mixed"), collector.one(f"escalate {MODEL}")
    (core,) = [span for span in collector.named(f"infer {MODEL}") if span.service == "penstock-core"]
    queue, run, batch = collector.one("queue"), collector.one("run"), collector.one(f"batch {MODEL}")
    assert {span.trace for span in (agent, up, core, queue, run)} == {trace}
    assert (up.parent, core.parent, queue.parent, run.parent) == (agent.id, up.id, core.id, core.id)
    assert batch.links == (core.id,)
    assert agent.began_ns <= up.began_ns <= core.began_ns <= queue.began_ns <= run.began_ns
    assert run.ended_ns <= core.ended_ns <= up.ended_ns <= agent.ended_ns
    assert len(collector.spans) == 6, "and nothing of what came under no span"
