"""``penstock core``: what an operator is told, and that signals and crashes leave things as promised."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cloud_core.commands.core import command
from cloud_core.settings import CoreSettings, check
from penstock.errors import ConfigError, Unavailable
from penstock.process import config
from penstock.registry.transfer import RegistryClient, push
from tests.cloud_core.rig import onnx_layout
from tests.waiting import PATIENCE_S, wait_until


def serve(data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    ports = ["--http-port", "0", "--grpc-port", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", "core", "serve", "--data-dir", str(data_dir), *ports, *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )


def endpoints(process: subprocess.Popen[str], data_dir: Path) -> dict[str, str]:
    path = data_dir / "endpoints.json"

    def announced() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return path.exists()

    wait_until("ready", announced)
    found: dict[str, str] = json.loads(path.read_text())
    return found


def post(url: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST", data=b""), timeout=10) as response:
        return json.load(response)


def test_a_core_that_is_killed_serves_again_what_was_pushed_and_one_that_is_told_to_stop_leaves_cleanly(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "core"
    first = serve(data_dir)
    with RegistryClient(f"http://{endpoints(first, data_dir)['http']}") as client:
        push(client, onnx_layout(tmp_path, "v1"))
    first.kill()
    first.communicate(timeout=PATIENCE_S)
    (data_dir / "endpoints.json").unlink(missing_ok=True)
    again = serve(data_dir)
    base = f"http://{endpoints(again, data_dir)['http']}"
    assert [(m["version"], m["state"]) for m in post(f"{base}/v2/repository/index")] == [("v1", "READY")]
    shown = CliRunner().invoke(command, ["status", "--core", base])
    assert shown.exit_code == 0, shown.output
    assert "READY" in shown.output
    second = subprocess.run(
        [sys.executable, "-m", "penstock", "core", "serve", "--data-dir", str(data_dir), "--http-port", "0"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "in use by another core" in second.stderr
    assert "Traceback" not in second.stderr
    again.send_signal(signal.SIGTERM)
    log = again.communicate(timeout=PATIENCE_S)[1]
    assert again.returncode == 0, log
    assert " ready http=127.0.0.1:" in log
    assert not (data_dir / "endpoints.json").exists()


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = serve(tmp_path / "core", "--http-port", port)
        log = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: it is in use" in log
    assert "Traceback" not in log


def test_status_of_nobody_says_who_did_not_answer() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        result = CliRunner().invoke(command, ["status", "--core", f"http://127.0.0.1:{probe.getsockname()[1]}"])
    assert isinstance(result.exception, Unavailable)
    assert "no core answers" in result.exception.message


def test_gc_removes_what_nothing_refers_to_from_a_core_that_runs(tmp_path: Path) -> None:
    data_dir = tmp_path / "core"
    process = serve(data_dir)
    base = f"http://{endpoints(process, data_dir)['http']}"
    with RegistryClient(base) as client:
        push(client, onnx_layout(tmp_path, "v1"))
    blobs = data_dir / "registry" / "blobs" / "sha256"
    needed = set(blobs.iterdir())
    old, young = blobs / ("a" * 64), blobs / ("b" * 64)
    for path in (old, young):
        path.write_bytes(b"x" * 2048)
    os.utime(old, (0, 0))

    def gc(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["gc", "--core", base, *arguments])

    shown = gc("--dry-run")
    assert shown.exit_code == 0, shown.output
    assert f"sha256:{old.name}" in shown.output
    assert "would remove  1 blob, 2.0 kB" in shown.output
    assert "too young     1 blob, 2.0 kB; kept for 24 h, uploads for 24 h" in shown.output
    assert set(blobs.iterdir()) == {*needed, old, young}
    found = json.loads(gc("-o", "json").stdout)
    assert found["removed"]["blob"] == {"count": 1, "size_bytes": 2048}
    assert [item["name"] for item in found["items"]] == [f"sha256:{old.name}"]
    assert set(blobs.iterdir()) == {*needed, young}
    assert "removed    nothing" in gc().output

    (blobs / ("c" * 64)).mkdir()
    os.utime(blobs / ("c" * 64), (0, 0))
    shown = gc()
    assert shown.exit_code == 1
    assert f"not removed: sha256:{'c' * 64}: " in shown.output
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert isinstance(gc().exception, Unavailable)


def test_a_misspelt_setting_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "core.toml"
    file.write_text("[serving]\nmax_queue_row = 3\n")
    result = CliRunner().invoke(command, ["serve", "--config", str(file)])
    assert isinstance(result.exception, ConfigError)
    assert "max_queue_rows" in result.exception.message


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"http": {"host": "0.0.0.0"}}, "allow_anonymous"),
        ({"grpc": {"host": "::"}}, "allow_anonymous"),
        ({"grpc": {"host": "core.example"}}, "tenants"),
        ({"tenants": [{"name": "a", "token": "12345678"}, {"name": "a", "token": "abcdefgh"}]}, "same name"),
        ({"tenants": [{"name": "a", "token": "12345678"}, {"name": "b", "token": "12345678"}]}, "same token"),
        ({"tenants": [{"name": "a", "token": "1234567"}]}, "at least 8"),
        ({"auth": {"oidc": {"issuer": "i", "audience": "a", "jwks": "k", "tenant": "b"}}}, "none of"),
        ({"tenants": [{"name": "a", "certificates": ["CN:a"]}]}, "tls.client_ca"),
    ],
)
def test_settings_that_would_open_the_core_or_confuse_tenants_are_refused(tree: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(msgspec.convert(tree, CoreSettings))


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"http": {"host": "localhost"}, "grpc": {"host": "::1"}},
        {"http": {"host": "0.0.0.0"}, "allow_anonymous": True},
        {"http": {"host": "0.0.0.0"}, "tenants": [{"name": "a", "token": "12345678"}]},
    ],
)
def test_settings_that_are_safe_or_meant_are_accepted(tree: dict[str, Any]) -> None:
    check(msgspec.convert(tree, CoreSettings))


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "core.toml"
    file.write_text('data_dir = "file"\n[http]\nport = 1\n[grpc]\nport = 1\n')
    env = {"PENSTOCK_CORE_HTTP__PORT": "2", "PENSTOCK_CORE_GRPC__PORT": "2"}
    settings = config.load(CoreSettings, file=file, env=env, env_prefix="PENSTOCK_CORE_", flags={"grpc.port": 3})
    assert (settings.data_dir, settings.http.port, settings.grpc.port) == ("file", 2, 3)


@pytest.mark.parametrize("arguments", [[], ["serve"], ["status"]])
def test_help_teaches_with_examples(arguments: list[str]) -> None:
    result = CliRunner().invoke(command, [*arguments, "--help"])
    assert result.exit_code == 0
    assert ("Examples:" in result.output) == bool(arguments)
