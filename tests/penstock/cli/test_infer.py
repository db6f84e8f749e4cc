from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from penstock.cli.infer import command
from penstock.errors import InvalidInput, NotFound, Unavailable
from tests.penstock.sdk.server import WEIGHTS, Backend, Servers, running_in_thread

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with running_in_thread(Backend()) as started:
        yield started


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.npy"
    np.save(path, ROWS)
    return str(path)


def infer(*arguments: str, stdin: str | None = None) -> str:
    done = CliRunner().invoke(command, arguments, input=stdin, catch_exceptions=False, standalone_mode=False)
    return done.output


@pytest.mark.parametrize("scheme", ["grpc", "http", "unix"])
@pytest.mark.parametrize("prefix", ["", "x="])
def test_a_file_in_json_out(servers: Servers, scheme: str, prefix: str, rows: str) -> None:
    document = json.loads(infer(servers.target(scheme), "digits", "--input", prefix + rows, "-o", "json"))
    assert (document["model"], document["version"]) == ("digits", "v1")
    assert document["outputs"]["logits"] == {"datatype": "FP32", "shape": [2, 3], "data": (ROWS @ WEIGHTS).tolist()}


def test_json_in_by_name_as_a_list_and_from_standard_input(servers: Servers) -> None:
    for arguments, stdin in (
        (("--json", '{"x": [[1, 2, 3, 4]]}'), None),
        (("--json", "[[1, 2, 3, 4]]"), None),
        (("--json", "-"), "[[1, 2, 3, 4]]"),
    ):
        document = json.loads(infer(servers.grpc, "digits", *arguments, "-o", "json", stdin=stdin))
        assert document["outputs"]["logits"]["data"] == ([[1, 2, 3, 4]] @ WEIGHTS).tolist()


def test_text_goes_in_and_comes_out(servers: Servers) -> None:
    pair = '{"a": [[1, 2]], "s": [["grün"]]}'
    document = json.loads(infer(servers.grpc, "pair", "--json", pair, "-o", "json"))
    assert document["outputs"]["s"] == {"datatype": "BYTES", "shape": [1, 1], "data": [["grün"]]}
    assert "grün" in infer(servers.grpc, "pair", "--json", pair)


def test_a_table_for_people_with_the_agents_account(servers: Servers, rows: str) -> None:
    text = infer(servers.unix, "agent", "-i", rows, "--explain", "--version", "v1")
    assert "served_by    edge" in text
    assert "logits  FP32      2x3" in text
    assert servers.backend.requests[-1].parameters["explain"] is True
    assert servers.backend.requests[-1].version == "v1"


@pytest.mark.parametrize("arguments", [(), ("--json", "[]", "--input", "a.npy"), ("-i", "a.npy", "-i", "b.npy")])
def test_unclear_inputs_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(command, ("grpc://127.0.0.1:1", "m", *arguments))
    assert done.exit_code == 2
    assert "Usage:" in done.output


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04"])
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"bad\.npy: not a readable \.npy file"):
        infer("grpc://127.0.0.1:1", "m", "-i", str(path))


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pickled.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInput, match="not a readable"):
        infer("grpc://127.0.0.1:1", "m", "-i", str(path))


@pytest.mark.parametrize("text", ["", "{", "1", "[" * 100_000])
def test_json_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--json"):
        infer("grpc://127.0.0.1:1", "m", "--json", text)


def test_errors_of_the_server_are_passed_on(servers: Servers, rows: str, closed_port: int) -> None:
    with pytest.raises(NotFound, match="known: digits"):
        infer(servers.grpc, "none", "-i", rows)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{closed_port}"):
        infer(f"http://127.0.0.1:{closed_port}", "digits", "-i", rows)
