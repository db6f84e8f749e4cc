"""Integer types by processor, and no variant for a processor that this machine cannot vouch for."""

from __future__ import annotations

import pytest

from compiler.recipe import targets
from penstock.errors import CompileError, ConfigError
from penstock.process import machine


def test_every_target_that_a_device_can_report_has_types_or_is_fp32_only() -> None:
    texts = {name: str(targets.resolve(name, here=name).integers) for name in machine.EDGE_TARGETS}
    assert texts == {
        "x86-64-vnni": "u8s8",
        "x86-64": "u8s8 reduced range",  # full range saturates without VNNI
        "arm64": "s8s8",
        "any": "None",
        "cuda": "None",
        "openvino": "u8s8",
        "qnn": "u8s8",
        "coreml": "None",
        "xnnpack": "s8s8",
    }


def test_host_is_this_machine() -> None:
    assert targets.resolve("host", here="arm64").name == "arm64"
    assert targets.resolve("host").name == machine.edge_target()


def test_vnni_machine_may_compile_for_plain_x86() -> None:
    assert targets.resolve("x86-64", here="x86-64-vnni").name == "x86-64"


@pytest.mark.parametrize(
    ("name", "here"),
    [("arm64", "x86-64-vnni"), ("x86-64-vnni", "x86-64"), ("cuda", "x86-64"), ("openvino", "x86-64-vnni")],
)
def test_a_target_whose_arithmetic_differs_here_is_not_measured_here(name: str, here: str) -> None:
    assert not targets.resolve(name, here=here).runs_here
    assert targets.resolve(here, here=here).runs_here


@pytest.mark.parametrize("name", ["edge-x86-vnni", "edge-x86", "edge-arm64", "edge-any"])
def test_targets_may_be_written_with_the_role_in_front(name: str) -> None:
    assert targets.resolve(name).name in machine.EDGE_TARGETS


def test_every_target_is_listed_and_resolves() -> None:
    assert all(targets.resolve(name) for name in targets.names())


def test_misspelt_target() -> None:
    with pytest.raises(ConfigError, match="did you mean 'arm64'"):
        targets.resolve("arm46", here="arm64")


def test_int8_for_any_processor_is_refused() -> None:
    with pytest.raises(CompileError, match="precisions = ..fp32"):
        targets.integer_types(targets.resolve("any", here="any"))
