"""What ``penstock agent doctor`` says: each thing that may be wrong is found and named, and nothing is changed."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge_agent import doctor
from edge_agent.cli import command
from edge_agent.settings import AgentSettings, load

NOWHERE = {"core": "grpc://127.0.0.1:1", "registry": "http://127.0.0.1:1"}


def settings(tmp_path: Path, **changes: Any) -> AgentSettings:
    return load(env={}, flags={"data_dir": str(tmp_path / "data"), **NOWHERE, **changes})


def found(findings: Iterator[doctor.Finding] | list[doctor.Finding]) -> dict[str, tuple[str, str]]:
    return {one.check: (one.state, one.found) for one in findings}


def test_a_device_that_reaches_nothing_is_told_so_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('core = "grpc://127.0.0.1:1"\nregistry = "http://127.0.0.1:1"\n')
    arguments = ["doctor", "--config", str(tmp_path / "agent.toml"), "--data-dir", str(tmp_path / "data")]
    said = CliRunner().invoke(command, [*arguments, "-o", "json"])
    assert said.exit_code == 1
    states = {one["check"]: one["state"] for one in json.loads(said.stdout)["findings"]}
    assert states == {
        "settings": "ok",
        "data directory": "ok",
        "disk space": "ok",
        "engine": "ok",
        "trust": "ok",
        "tls": "ok",
        "core": "failed",
        "registry": "failed",
        "clock": "skipped",
        "agent": "warning",
        "models": "skipped",
    }
    assert not (tmp_path / "data").exists()
    table = CliRunner().invoke(command, arguments)
    assert "grpc://127.0.0.1:1: cannot reach it: Connection refused" in " ".join(table.stdout.split())


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('core = "http://127.0.0.1:1"\n')
    said = CliRunner().invoke(command, ["doctor", "--config", str(tmp_path / "agent.toml")])
    assert "core: 'http://127.0.0.1:1' is not grpc://host:port" in str(said.exception)


def test_rights_of_the_data_directory_are_looked_at(tmp_path: Path) -> None:
    made = settings(tmp_path)
    data = Path(made.data_dir)
    data.mkdir(mode=0o750)
    assert found(doctor.examine(made, {}))["data directory"][0] == "ok"
    data.chmod(0o777)
    state, said = found(doctor.examine(made, {}))["data directory"]
    assert (state, "writable for everybody (mode 777)" in said) == ("failed", True)


def test_files_of_tls_and_trust_are_read(tmp_path: Path) -> None:
    wrong = settings(tmp_path, core="grpcs://127.0.0.1:1", **{"tls.ca_file": "/nowhere.pem"})
    wrong_root = settings(tmp_path, trust_root=str(tmp_path / "none"))
    assert found(doctor.examine(wrong, {}))["tls"] == ("failed", "tls.ca_file: /nowhere.pem: No such file or directory")
    assert found(doctor.examine(wrong_root, {}))["trust"][0] == "failed"


def test_another_server_on_the_agents_socket_is_told(tmp_path: Path, short_dir: Path) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b'{"error":"x"}')

        def address_string(self) -> str:
            return ""

        def log_message(self, *_: object) -> None: ...

    with socketserver.UnixStreamServer(str(short_dir / "a.sock"), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = found(doctor.examine(settings(tmp_path, socket=str(short_dir / "a.sock")), {}))
        server.shutdown()
    assert told["agent"][0] == "failed"
    assert "answers 404, but not as an agent" in told["agent"][1]
    assert told["models"][0] == "skipped"


def test_the_engine_may_come_from_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu and others take the place of onnxruntime, and no package of that name is installed then."""
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert found(doctor.examine(settings(tmp_path), {}))["engine"][0] == "ok"


def test_too_little_space_is_told(tmp_path: Path) -> None:
    for reserve, state in ((1, "ok"), (2**62, "failed")):
        assert found(doctor._space(tmp_path, reserve))["disk space"][0] == state


def test_a_clock_that_is_off_is_told() -> None:
    assert found(doctor._clock({"http://a": 0.4}))["clock"] == ("ok", "as the registry's")
    assert found(doctor._clock({"http://a": -7200.0}))["clock"] == ("warning", "7200 s behind the registry's")


def test_models_are_told_as_the_agent_tells_them() -> None:
    model = {"model": "m", "version": "v1", "phase": "COMMITTED", "mode": "CASCADE", "is_serving": True}
    quiet = {"error": "", "damaged": "", "mode_why": ""}
    told = found(
        doctor._models(
            {
                "models": [
                    {**model, **quiet},
                    {**model, **quiet, "model": "late", "mode": "", "is_serving": False, "error": "no space"},
                    {**model, **quiet, "model": "careful", "mode": "CLOUD_ONLY", "mode_why": "harm above its bound"},
                ]
            }
        )
    )
    assert told["model m"] == ("ok", "v1, committed, cascade")
    assert told["model late"] == ("failed", "v1, committed, not serving; no space")
    assert told["model careful"] == ("warning", "v1, committed, cloud_only; harm above its bound")
    assert found(doctor._models({"models": [], "why_no_models": "nothing was assigned"}))["models"][0] == "warning"
