"""Which machine may run a compiled engine, and what is said to the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ArtifactError
from penstock.runtime import engine_header
from penstock.runtime.engine_header import EngineHeader, EngineHost, Range, check_compatible

HOST = EngineHost(
    os="linux", architecture="x86_64", runtimes={"tensorrt": "10.16.1.11", "tensorrt-rtx": "1.7.1.116"},
    compute_capability="8.9",
)  # fmt: skip


def header(**changes: Any) -> EngineHeader:
    plain = EngineHeader(
        format="tensorrt-rtx",
        onnx_digest="sha256:" + "0" * 64,
        engine_digest="sha256:" + "1" * 64,
        version="1.7.1.116",
        compute_capabilities=("8.6", "8.9"),
        precision="fp16",
        profiles={"x": Range(least=(1, 3), best=(8, 3), most=(64, 3))},
        os="linux",
        architecture="x86_64",
        flags={"optimization_level": 3, "builder_flags": "TF32"},
    )
    changed = msgspec.structs.replace(plain, **changes)
    return msgspec.structs.replace(changed, cache_key=engine_header.make_key(changed))


def test_the_machine_that_it_was_built_for_runs_it() -> None:
    assert check_compatible(header(), HOST) is None


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (replace(HOST, os="windows"), "it was built for linux on x86_64, and this is windows on x86_64"),
        (replace(HOST, architecture="aarch64"), "it was built for linux on x86_64, and this is linux on aarch64"),
        (replace(HOST, compute_capability=None), "there is no NVIDIA GPU here"),
        (
            replace(HOST, compute_capability="12.0"),
            "it has code for compute capability 8.6, 8.9, and this GPU's is 12.0: "
            'compile with compute_capabilities = ["12.0"]',
        ),
        (
            replace(HOST, runtimes={"tensorrt": "10.16.1.11"}),
            "the runtime tensorrt-rtx is not installed here; the engine needs version 1.7.1.116",
        ),
        (
            replace(HOST, runtimes={"tensorrt-rtx": "1.7.2.1"}),
            "it was built by tensorrt-rtx 1.7.1.116 and runs on no other version; here is 1.7.2.1",
        ),
    ],
)
def test_another_machine_is_told_why_not(machine: EngineHost, reason: str) -> None:
    assert check_compatible(header(), machine) == reason


@pytest.mark.parametrize(
    ("runtime", "runs"),
    [
        ("10.16.1.11", True),
        ("10.16.2.1", True),
        ("10.20.0.1", True),
        ("11.4.0.106", True),
        ("12.0.0.1", False),
        ("10.16.1.10", False),
        ("10.9.0.34", False),
        ("9.3.0.1", False),
    ],
)
def test_a_version_compatible_engine_runs_on_newer_ones_up_to_the_next_major(runtime: str, runs: bool) -> None:
    engine = header(format="tensorrt", version="10.16.1.11", is_version_compatible=True)
    reason = check_compatible(engine, replace(HOST, runtimes={"tensorrt": runtime}))
    assert (reason is None) == runs
    if reason is not None:
        assert reason.endswith(f"runs on that and newer versions up to 11.x; here is {runtime}")


@given(st.lists(st.sampled_from(["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]), min_size=1, unique=True))
def test_an_engine_runs_on_exactly_the_processors_it_was_built_for(capabilities: list[str]) -> None:
    engine = header(compute_capabilities=tuple(capabilities))
    for name in ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0", "12.1"):
        assert (check_compatible(engine, replace(HOST, compute_capability=name)) is None) == (name in capabilities)


def test_the_document_is_written_and_read_the_same() -> None:
    data = engine_header.encode(header())
    assert engine_header.decode(data) == header()
    assert engine_header.encode(engine_header.decode(data)) == data


def test_the_key_depends_on_all_that_decides_about_the_engine_and_not_on_its_bytes() -> None:
    plain = header()
    assert header(engine_digest="sha256:" + "2" * 64).cache_key == plain.cache_key
    for changes in (
        {"onnx_digest": "sha256:" + "2" * 64},
        {"version": "1.7.1.117"},
        {"compute_capabilities": ("8.9",)},
        {"precision": "fp32"},
        {"profiles": {"x": Range(least=(1, 3), best=(8, 3), most=(32, 3))}},
        {"flags": {"optimization_level": 4, "builder_flags": "TF32"}},
        {"driver": "13.0"},
        {"os": "windows"},
    ):
        assert header(**changes).cache_key != plain.cache_key, changes


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"format": "onnx"}', b"[" * 10_000],
    ids=["empty", "cut off", "no object", "no text", "other", "deep"],
)
def test_a_document_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="not a description of an engine"):
        engine_header.decode(data)


def test_a_document_that_was_changed_by_hand_is_refused() -> None:
    changed = engine_header.encode(header()).replace(b'"8.6"', b'"9.0"')
    with pytest.raises(ArtifactError, match="changed by hand"):
        engine_header.decode(changed)
