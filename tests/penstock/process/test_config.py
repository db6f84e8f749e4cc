"""Settings: precedence, sections, and errors that name the nearest known setting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.process import config


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8000


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Literal["info", "error"] = "info"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    http: Http = Http()
    log: Log = Log()
    labels: dict[str, str] = {}
    waves: list[float] = []
    tenants: list[Tenant] = []


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return path


def test_no_file_gives_the_defaults() -> None:
    assert config.load(Settings) == Settings()


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[http]\nport = 1\nhost = 'a'\n")
    env = {"PENSTOCK_X_HTTP__PORT": "2", "PENSTOCK_X_HTTP__HOST": "b", "OTHER": "1"}
    got = config.load(Settings, file=file, env=env, env_prefix="PENSTOCK_X_", flags={"http.port": 3, "http.host": None})
    assert got.http == Http(host="b", port=3)


def test_lists_and_tables_from_the_environment() -> None:
    env = {"P_WAVES": "0.1, 1", "P_LABELS": '{"site": "north"}'}
    got = config.load(Settings, env=env, env_prefix="P_")
    assert (got.waves, got.labels) == ([0.1, 1.0], {"site": "north"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[http]\nprot = 1", "unknown setting 'http.prot'; did you mean 'port'"),
        ("htp = 1", "unknown setting 'htp'; did you mean 'http'"),
        ("[[tenants]]\nnmae = 'a'", "'tenants.nmae'; did you mean 'name'"),
        ("[http]\nport = 'many'", "http.port: .*int"),
        ("http = ", "not valid TOML"),
        ("[log]\nlevel = 'loud'", "log.level: .*'loud'; one of 'info', 'error'"),
    ],
)
def test_mistakes_in_a_file_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(Settings, file=write(tmp_path, text))


def test_a_misspelt_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match="P_HTTP__PROT.*did you mean 'port'"):
        config.load(Settings, env={"P_HTTP__PROT": "1"}, env_prefix="P_")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.toml: no such file"):
        config.load(Settings, file=tmp_path / "nowhere.toml")


def test_a_value_is_not_a_section() -> None:
    with pytest.raises(ConfigError, match="is a value, not a section"):
        config.load(Settings, env={"P_WAVES__X": "1"}, env_prefix="P_")
