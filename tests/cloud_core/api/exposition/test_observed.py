"""What one core that observes its requests shows of them, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from cloud_core.app import Core
from cloud_core.commands import core as cli
from penstock import AsyncClient
from penstock.errors import InvalidInput, NotFound
from tests.cloud_core.rig import soon, start_core
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.asyncio(loop_scope="module")
OBSERVING = {
    "traffic": True,
    "triton_names": True,
    "access_log": "all",
    "batch_reasons": True,
    "slo": {"*": {"latency_s": 1e-6, "fast": 0.5}},
    "drift": {"is_on": True, "reference_rows": 50, "min_rows": 20, "look_every_s": 0.05},
}
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


async def told(core: Core, *command: str, code: int = 0) -> Any:
    """What a command prints of a core as JSON."""
    at = ("--core", f"http://127.0.0.1:{core.http_port}", "--token", TOKEN, "-o", "json")
    result = await asyncio.to_thread(CliRunner().invoke, cli.command, [*command, *at])
    assert result.exit_code == code, result.output
    return json.loads(result.output)


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


async def test_promises_are_held_against_what_was_answered(core: Core) -> None:
    for _ in range(20):
        await ask(core)
    with pytest.raises(InvalidInput):
        await ask(core, outputs=("nothing",))
    found = await told(core, "slo", code=0)  # everything is slow, which burns at 2: too little for an alarm
    (mlp,) = found["models"]
    assert mlp["since_start"]["slow"] == mlp["since_start"]["requests"] >= 20
    assert mlp["since_start"]["failed"] == 0, "what a client does wrong is no failure of the model"
    assert {one["rate"] for one in mlp["burning"] if one["objective"] == "fast"} == {2.0}
    rates = await scraped(core)
    at = [("model", "mlp"), ("objective", "fast"), ("window", "5m")]
    assert rates[f"penstock_slo_burn_rate{at}"] == 2.0


async def test_a_refusal_is_explained_by_its_words_and_a_batch_by_why_it_was_closed(core: Core) -> None:
    with pytest.raises(NotFound):
        await ask(core, version="v9")
    found = await told(core, "explain", "mlp")
    assert {"model": "mlp", "code": "not-found", "requests": 1} in found["refused"]
    assert "v9" in found["last"][0]["why"]
    assert found["last"][0]["tenant"] == "shop"
    (closed,) = [one for one in found["batches"] if one["reason"] == "replica free"]
    assert closed["rows"] == 2 * closed["batches"], "each was a request of two rows"


async def test_top_shows_what_was_answered_and_what_waits(core: Core) -> None:
    await ask(core)
    found = await told(core, "top")
    (mlp,) = found["models"]
    assert (mlp["version"], mlp["state"], mlp["waiting_rows"], mlp["running_rows"]) == ("v1", "READY", 0, 0)
    assert mlp["rows"] == 2 * (mlp["requests"] - mlp["failed"])
    assert 0 < mlp["p50_s"] <= mlp["p99_s"]
    assert found["refused"]["not-found"] >= 1


async def test_rows_of_another_kind_are_a_drift_that_commands_and_metrics_tell(core: Core) -> None:
    async with AsyncClient(f"http://127.0.0.1:{core.http_port}", token=TOKEN) as client:
        for offset, source in ((0.0, "the first"), (9.0, "the first")):
            x = np.random.default_rng(1).normal(offset, size=(200, 4)).astype(np.float32)
            await client.infer("mlp", {"x": x})
            await soon(lambda source=source: source in core.observing.drift.documents()[0]["reference"])
    await soon(lambda: "x[0]" in core.observing.drift.shifted(("mlp", "v1")))
    found = await told(core, "drift", code=3)
    assert {"x[0]", "x[1]", "x[2]", "x[3]"} <= set(found["versions"][0]["shifted"])
    assert found["events"][0]["model"] == "mlp"
    metrics = await scraped(core)
    assert metrics[f"penstock_drift_psi{[('feature', 'x[0]'), ('model', 'mlp'), ('version', 'v1')]}"] > 1.0
    assert metrics[f"penstock_drift_shifted_features{[('model', 'mlp'), ('version', 'v1')]}"] >= 4
    at = ("--core", f"http://127.0.0.1:{core.http_port}", "--token", TOKEN)
    result = await asyncio.to_thread(CliRunner().invoke, cli.command, ["drift", *at])
    assert "shifted" in result.output


@pytest.mark.parametrize("verb", ["slo", "explain", "top", "drift"])
async def test_what_names_models_and_tenants_needs_a_credential(core: Core, verb: str) -> None:
    at = ("--core", f"http://127.0.0.1:{core.http_port}", "--token", "a-wrong-token")
    result = await asyncio.to_thread(CliRunner().invoke, cli.command, [verb, *at])
    assert result.exit_code != 0
    assert "mlp" not in result.output


async def test_people_get_tables(core: Core) -> None:
    at = ("--core", f"http://127.0.0.1:{core.http_port}", "--token", TOKEN)
    for verb, words in (("slo", "99.9% answered"), ("explain", "replica free"), ("top", "P99 MS")):
        more = ("--once",) if verb == "top" else ()
        result = await asyncio.to_thread(CliRunner().invoke, cli.command, [verb, *at, *more])
        assert result.exit_code == 0, result.output
        assert words in result.output


async def page(core: Core, **headers: str) -> tuple[int, dict[str, str], str]:
    def get() -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", core.http_port, timeout=20)
        try:
            connection.request("GET", "/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", **headers})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(get)


def as_browsers_do(token: str) -> str:
    """The header that a browser makes of a name and a password."""
    return "Basic " + base64.b64encode(f"anybody:{token}".encode()).decode()


async def test_browsers_get_a_page_with_the_token_as_a_password_and_nothing_without(core: Core) -> None:
    status, headers, body = await page(core)
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="penstock", charset="UTF-8"')
    assert "mlp" not in body
    assert (await page(core, Authorization=as_browsers_do("a-wrong-token")))[0] == 401
    assert (await page(core, Authorization="Basic not-base64!"))[0] == 401
    status, headers, body = await page(core, Authorization=as_browsers_do(TOKEN))
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    for words in ("mlp", "v1", "shop", "99.9% answered", "replica free", "compared with", "READY".lower()):
        assert words in body
    assert (await page(core, Accept="*/*"))[1]["content-type"] == "application/json", "scripts get what they always got"


async def test_what_a_client_sends_is_text_on_the_page(core: Core) -> None:
    with pytest.raises(NotFound):
        await ask(core, version="<script>alert(1)</script>")
    _, _, body = await page(core, Authorization=as_browsers_do(TOKEN))
    assert "&lt;script&gt;alert(1)" in body
    assert "<script" not in body


@pytest.mark.parametrize(("scheme", "is_light"), [("dark", False), ("light", True)])
async def test_a_browser_shows_the_page_in_the_scheme_of_its_user(
    core: Core, scheme: str, is_light: bool, tmp_path: Path
) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed: Debian's package 'chromium' has it")
    await ask(core)
    picture = tmp_path / "page.png"
    address = f"http://anybody:{TOKEN}@127.0.0.1:{core.http_port}/"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1500",
               f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")  # fmt: skip
    shown = await asyncio.to_thread(
        subprocess.run, [browser, *options, f"--screenshot={picture}", address], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "Refused to" not in shown.stderr, "its own policy forbids nothing that it needs"
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    ground, inks = pixels[5, 5], len(np.unique(pixels))
    assert (ground > 200) == is_light
    assert (ground < 60) != is_light
    assert inks > 50, "there is something on it"
