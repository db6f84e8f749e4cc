"""Targets by name: what a machine is, and what it can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import InvalidInput
from penstock.process import machine


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_x86_with_any_integer_dot_product_is_vnni(flag: str) -> None:
    assert machine.target_of("x86_64", frozenset({"avx2", flag})) == "x86-64-vnni"


def test_x86_without_vnni_gets_the_careful_target() -> None:
    assert machine.target_of("AMD64", frozenset({"avx2", "avx512f"})) == "x86-64"


@pytest.mark.parametrize(("architecture", "target"), [("aarch64", "arm64"), ("arm64", "arm64"), ("riscv64", "any")])
def test_other_architectures(architecture: str, target: str) -> None:
    assert machine.target_of(architecture, frozenset()) == target


def test_a_saturating_variant_is_never_offered_to_x86_without_vnni() -> None:
    assert machine.runnable_targets("x86-64-vnni") == ("x86-64-vnni", "x86-64", "any")
    assert "x86-64-vnni" not in machine.runnable_targets("x86-64")


def test_every_target_runs_its_own_variants_first_and_any_last() -> None:
    for target in machine.EDGE_TARGETS:
        runnable = machine.runnable_targets(target)
        assert runnable[0] == target
        assert runnable[-1] == "any"


def test_a_misspelt_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'x86-64-vnni'"):
        machine.runnable_targets("x86-64-vni")


def test_this_machine_has_a_known_target() -> None:
    assert machine.edge_target() in machine.EDGE_TARGETS


def test_a_system_without_cpuinfo_has_no_flags(tmp_path: Path) -> None:
    assert machine._cpu_flags(tmp_path / "absent") == frozenset()


def test_flags_are_read_from_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert machine._cpu_flags(tmp_path / "cpuinfo") == frozenset({"fpu", "avx2", "avx512_vnni"})
