"""A running core reads its settings again: by SIGHUP and by command, all of it or nothing; and ends as a lame duck."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from examples.digits.processes import penstock
from penstock.artifact.layout import Layout
from penstock.errors import QuotaExceeded, Unauthenticated
from penstock.rest.connection import ask
from penstock.sdk.client import Client
from tests.cloud_core.rig import onnx_layout
from tests.processes import CoreProcess
from tests.waiting import wait_until

ADMIN = "the-token-of-ops"
SHOP = '[[tenants]]\nname = "shop"\ntoken = "the-token-of-shop"\nrole = "client"\n'
OPS = f'[[tenants]]\nname = "ops"\ntoken = "{ADMIN}"\nrole = "admin"\n'
ROW = {"x": [[1.0, 2.0, 3.0, 4.0]]}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreProcess]:
    directory = tmp_path_factory.mktemp("reload")
    running = CoreProcess(directory, config="[serving]\nlame_duck_s = 600\n" + OPS + SHOP)
    running.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PENSTOCK_TOKEN", ADMIN)
        push(running, onnx_layout(directory, "v1"))
        yield running
    running.kill()


def push(core: CoreProcess, layout: Layout) -> None:
    penstock("artifact", "push", str(layout.root), "--registry", core.http_url)
    wait_until("mlp in the core", lambda: ask(core.http_url, "GET", "/v2/models/mlp/ready", token=ADMIN).status == 200)


def write(core: CoreProcess, text: str) -> None:
    (core.directory / "core.toml").write_text(text)


def reloaded(core: CoreProcess) -> dict[str, bool]:
    answer = ask(core.http_url, "POST", "/v2/_penstock/reload", token=ADMIN)
    assert answer.status == 200, answer.body
    return {one["setting"]: one["is_live"] for one in json.loads(answer.body)["changes"]}


def infer(core: CoreProcess, token: str) -> None:
    with Client(core.http_url, token=token) as client:
        client.infer("mlp", ROW)


def test_tenants_rates_and_levels_are_applied_and_the_rest_is_said_to_wait(core: CoreProcess) -> None:
    infer(core, "the-token-of-shop")
    with pytest.raises(Unauthenticated):
        infer(core, "the-token-of-mill")
    mill = '[[tenants]]\nname = "mill"\ntoken = "the-token-of-mill"\nrole = "client"\n'
    limited = SHOP + "rate_rows_per_s = 0.001\nburst_rows = 1\n"
    slo = "[observing.slo.mlp]\nanswered = 0.99\n"
    write(
        core, f'[log]\nlevel = "debug"\n[http]\nkeepalive_s = 9\n{slo}[serving]\nlame_duck_s = 1\n{OPS}{limited}{mill}'
    )
    found = reloaded(core)
    assert {name for name, is_live in found.items() if not is_live} == {"http.keepalive_s"}
    assert {"log.level", "serving.lame_duck_s", "tenants.shop.rate_rows_per_s", "tenants.mill.token"} <= set(found)
    infer(core, "the-token-of-mill")
    infer(core, "the-token-of-shop")
    with pytest.raises(QuotaExceeded):
        infer(core, "the-token-of-shop")
    slos = json.loads(ask(core.http_url, "GET", "/v2/_penstock/slo", token=ADMIN).body)
    assert [one["model"] for one in slos["models"]] == ["mlp"]
    assert "the-token" not in core.log
    table = penstock("core", "reload", "--core", core.http_url).stdout
    assert "http.keepalive_s" in table
    assert "waits for a restart" in table
    assert "tenants" not in table, "what was applied is not new any more"


def test_a_hangup_reads_them_again_and_who_is_gone_is_let_in_no_more(core: CoreProcess) -> None:
    write(core, f"[serving]\nlame_duck_s = 1\n{OPS}{SHOP}")
    marks = core.log.count("settings reloaded")
    os.kill(core.pid, signal.SIGHUP)
    wait_until("the settings", lambda: core.log.count("settings reloaded") > marks)
    with pytest.raises(Unauthenticated):
        infer(core, "the-token-of-mill")
    infer(core, "the-token-of-shop")
    infer(core, "the-token-of-shop")


@pytest.mark.parametrize(
    "text",
    [
        "[serving\n",
        "[servin]\n",
        "[serving]\nlame_duck_s = -1\n",
        '[serving.traffic.versions]\nmlp = "latest"\n',
        OPS * 2,
    ],
    ids=["no TOML", "unknown", "out of range", "a policy that says nothing", "two of one name"],
)
def test_settings_that_are_wrong_change_nothing(core: CoreProcess, text: str) -> None:
    before = reloaded(core)
    write(core, f'{text}[log]\nlevel = "error"\n')
    answer = ask(core.http_url, "POST", "/v2/_penstock/reload", token=ADMIN)
    assert (answer.status, answer.headers["x-penstock-code"]) == (500, "config")
    infer(core, "the-token-of-shop")
    assert "settings not reloaded" in core.log
    write(core, f"[serving]\nlame_duck_s = 1\n{OPS}{SHOP}")
    assert reloaded(core) == before


def test_a_client_may_not_have_them_read_again(core: CoreProcess) -> None:
    answer = ask(core.http_url, "POST", "/v2/_penstock/reload", token="the-token-of-shop")
    assert answer.status == 403


def test_a_core_that_is_told_to_end_is_not_ready_and_still_takes_work_for_a_while(core: CoreProcess) -> None:
    write(core, f"[serving]\nlame_duck_s = 3\n{OPS}{SHOP}")
    reloaded(core)
    os.kill(core.pid, signal.SIGTERM)
    wait_until("it to be not ready", lambda: ask(core.http_url, "GET", "/v2/health/ready").status == 503)
    infer(core, "the-token-of-shop")  # a balancer has not noticed yet
    wait_until("its end", lambda: " stopped" in core.log)
