"""Settings of the agent: sources, defaults that depend on the user, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent import settings
from penstock.errors import ConfigError


def test_works_with_no_configuration_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = settings.load(env={"XDG_DATA_HOME": "/home/u/.data", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert found.data_dir == "/home/u/.data/penstock/agent"
    assert found.socket == "/run/user/1000/penstock/agent.sock"
    assert found.tcp == ""
    assert found.subscriptions == ("*",)


def test_root_uses_system_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = settings.load(env={})
    assert (found.data_dir, found.socket) == ("/var/lib/penstock/agent", "/run/penstock/agent.sock")


def test_a_data_directory_of_its_own_brings_a_socket_of_its_own(tmp_path: Path) -> None:
    found = settings.load(env={"XDG_RUNTIME_DIR": "/run/user/1"}, flags={"data_dir": "/srv/a1"})
    assert found.socket == "/srv/a1/agent.sock"


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('core = "grpc://file:1"\nregistry = "http://file:1"\n[update]\nprobation_s = 3\nmax_crashes = 5\n')
    env = {"PENSTOCK_AGENT_REGISTRY": "http://env:1", "PENSTOCK_AGENT_UPDATE__PROBATION_S": "7.5", "OTHER": "x"}
    found = settings.load(file=file, env=env, flags={"core": "grpc://flag:1", "tcp": None})
    assert (found.core, found.registry) == ("grpc://flag:1", "http://env:1")
    assert (found.update.probation_s, found.update.max_crashes) == (7.5, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[cascade]\naudit_shar = 0.1\n", "audit_share"),
        ('regstry = "http://x"\n', "registry"),
        ('registry = "grpc://core:8001"\n', "registry: 'grpc://core:8001' is not a URL such as"),
        ('registry = "core"\n', "registry: 'core' is not a URL such as"),
        ('registry = "https://acme:s3cret@host"\n', "give user and password by .* registry_user and registry_token"),
        ('registry_user = "acme"\n', "registry_user: a user needs its password or token in registry_token"),
        ("[cascade]\naudit_share = 1.5\n", "cascade.audit_share"),
        ('[cascade]\non_unreachable = "hope"\n', "cascade.on_unreachable"),
        ("[limits]\nmax_queue_rows = 0\n", "limits.max_queue_rows"),
        ("[outbox]\nmax_bytes = 10\n", "outbox.max_bytes"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        settings.load(file=file, env={})


def test_a_socket_path_that_no_system_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="longer than the 107 bytes"):
        settings.load(env={}, flags={"socket": "/tmp/" + "x" * 110})
