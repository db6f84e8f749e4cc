"""One rule for names of devices, and everybody who asks for one keeps to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cloud_core.settings import CoreSettings
from cloud_core.settings import check as check_core
from edge_agent import settings as agent_settings
from penstock.cli.fleet.commands import command
from penstock.errors import ConfigError, InvalidInput
from penstock.wire.device_ids import MAX_LENGTH, check_device_id

HOSTILE = {
    "empty": "",
    "10 kB": "x" * 10_240,
    "one too long": "x" * (MAX_LENGTH + 1),
    "newline inside": "cam\n1",
    "newline at the end": "cam-1\n",
    "slash": "line/cam-1",
    "parent": "..",
    "path": "../../etc/passwd",
    "space": "cam 1",
    "umlaut": "kühlung",
    "digits of another script": "\u0661\u0662",
    "direction": "cam\u202e1",
    "option": "--core",
    "escape": "\x1b[2J",
    "nul": "a\0b",
}
REFUSAL = "is not a device id; it must be 1 to 128 letters, digits and"


@pytest.mark.parametrize("name", ["a", "press-7", "00:1b:63:84:45:e6", "A.b_c-d", "x" * MAX_LENGTH, "0" * 32])
def test_what_may_be_a_device_id(name: str) -> None:
    assert check_device_id(name) == name


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_what_may_not_is_refused_with_the_rule_and_without_its_bytes(name: str) -> None:
    with pytest.raises(InvalidInput, match=REFUSAL) as refused:
        check_device_id(name)
    assert refused.value.field == "device_id"
    assert refused.value.message.isascii()
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("name", [name for name in HOSTILE.values() if name])
def test_the_agent_refuses_it_in_its_settings(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSAL):
        agent_settings.load(env={}, flags={"device_id": name, "data_dir": str(tmp_path)})


@pytest.mark.parametrize("name", [name for name in HOSTILE.values() if name])
def test_the_core_refuses_it_in_its_settings(name: str) -> None:
    tenant = {"name": "camera", "token": "camera-token", "role": "device", "device_id": name}
    with pytest.raises(ConfigError, match=f"tenants: camera: device_id: .*{REFUSAL}"):
        check_core(msgspec.convert({"tenants": [tenant]}, CoreSettings))


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_the_command_line_refuses_it_before_it_asks_a_core(name: str) -> None:
    result = CliRunner().invoke(command, ["plan", "digits:v2", "--device", name, "--core", "grpc://127.0.0.1:1"])
    assert isinstance(result.exception, InvalidInput)
    assert REFUSAL in result.exception.message
