"""What one core that observes its requests shows of them, over real sockets."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from cloud_core.app import Core
from penstock import AsyncClient
from tests.cloud_core.rig import start_core
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.asyncio(loop_scope="module")
OBSERVING = {"traffic": True, "triton_names": True, "access_log": "all"}
TOKEN = "shop-secret"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Core]:
    tenants = [{"name": "shop", "token": TOKEN}]
    async with await start_core(tmp_path_factory.mktemp("observed"), tenants=tenants, observing=OBSERVING) as running:
        yield running


async def ask(core: Core, *, over: str = "http", **request: Any) -> Any:
    port = core.http_port if over == "http" else core.grpc_port
    async with AsyncClient(f"{over}://127.0.0.1:{port}", token=TOKEN) as client:
        return await client.infer("mlp", {"x": rows(1, 2)}, **request)


async def scraped(core: Core) -> dict[str, float]:
    """What a scraper reads: values by name and labels."""
    text, _ = core.metrics.render("")
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_requests_are_counted_by_tenant_and_under_tritons_names(core: Core) -> None:
    for over in ("http", "grpc"):
        await ask(core, over=over)
    found = await scraped(core)
    who = [("arm", ""), ("model", "mlp"), ("tenant", "shop"), ("version", "v1")]
    assert found[f"penstock_traffic_rows_total{who}"] == 4
    assert found[f"penstock_traffic_duration_seconds_count{who}"] == 2
    at = [("model", "mlp"), ("version", "v1")]
    assert found[f"nv_inference_request_success{at}"] == 2
    assert found[f"nv_inference_count{at}"] == 4
    assert found[f"nv_inference_exec_count{at}"] == 2
    assert found[f"nv_inference_compute_infer_duration_us{at}"] > 0
    assert found["penstock_observer_defects_total[]"] == 0


@pytest.mark.parametrize("over", ["http", "grpc"])
async def test_each_request_has_a_line_in_the_log(core: Core, over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Log:
        def write(self, line: str) -> None:
            lines.append(line)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Log())
        await ask(core, over=over, request_id="r-1")
    (line,) = map(json.loads, lines)
    assert {name: line[name] for name in ("code", "model", "version", "tenant", "rows", "transport", "request_id")} == {
        "code": "ok", "model": "mlp", "version": "v1", "tenant": "shop", "rows": 2, "transport": over,
        "request_id": "r-1",
    }  # fmt: skip
    assert 0 < line["ran_s"] <= line["duration_s"]
