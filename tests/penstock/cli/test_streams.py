"""Output that goes somewhere odd: no traceback ever, and no success where a result was lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cloud_core.rig import onnx_layout
from tests.waiting import PATIENCE_S

PENSTOCK = f"{sys.executable} -m penstock"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which ``penstock`` is the command; a failed part of a pipe is its status."""
    script = f'set -o pipefail; penstock() {{ {PENSTOCK} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, timeout=PATIENCE_S, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_layout(tmp_path_factory.mktemp("layout"), "v1").root


COMMANDS = ("--help", "version", "artifact inspect {layout}", "artifact inspect {layout} -o json", "completion bash")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(command: str, layout: Path) -> None:
    done = shell(f"penstock {command.format(layout=layout)} | true")
    assert done.stderr == b""
    assert done.returncode in (0, 1)  # 0 where everything was in the pipe before its reader left


def test_a_closed_pipe_is_a_failed_command(layout: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PENSTOCK.split(), "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(("to", "why"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_that_is_lost_is_a_failed_command(command: str, to: str, why: str, layout: Path) -> None:
    done = shell(f"penstock {command.format(layout=layout)} {to}")
    assert done.stderr.decode() == f"penstock: standard output cannot be written: {why}\n"
    assert done.returncode == 1


@pytest.mark.parametrize("to", ["> /dev/full", ">&-"])
@pytest.mark.parametrize(("command", "code"), [("artifact explode", 2), ("artifact inspect ./nothing", 1)])
def test_an_error_whose_document_is_lost_is_that_error(command: str, code: int, to: str) -> None:
    lost = shell(f"penstock {command} -o json {to}")
    said = shell(f"penstock {command} -o json")
    assert json.loads(said.stdout)["error"]["exit_code"] == code
    assert (lost.returncode, lost.stderr) == (code, said.stderr)


@pytest.mark.parametrize("to", ["2> /dev/full", "2>&-", "<&-"])
def test_what_is_beside_the_result_is_lost_without_harm(to: str, layout: Path) -> None:
    done = shell(f"penstock artifact inspect {layout} -o json {to}")
    assert (done.returncode, done.stderr) == (0, b"")
    json.loads(done.stdout)
    refused = shell(f"penstock artifact inspect ./nothing {to}")
    assert refused.returncode == 1


def test_a_file_never_takes_the_place_of_a_closed_descriptor() -> None:
    code = "from penstock.cli import streams; streams.secure(); print(open('/dev/null').fileno() > 2, flush=True)"
    done = shell(f'{sys.executable} -c "{code}" <&- 2>&-')
    assert done.stdout == b"True\n"


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "locale"],
)
def test_a_narrow_encoding_shows_another_character_and_goes_on(environment: Mapping[str, str], tmp_path: Path) -> None:
    refused = shell(f"penstock artifact inspect {tmp_path}/größe", **environment)
    assert refused.returncode == 1
    assert b"Traceback" not in refused.stderr
    assert b"no such directory" in refused.stderr
    for command in ("--help", "compile --help", "version"):
        done = shell(f"penstock {command}", **environment)
        assert (done.returncode, done.stderr) == (0, b"")
