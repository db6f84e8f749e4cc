"""The words of the Makefile: plain ``make`` lists every one, and each runs what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
OF_AN_OUTER_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS")


def make(*arguments: str) -> str:
    # what a `make test ARGS=...` around this was given must not reach the make that is tested
    command = [
        "env",
        *(f"--unset={name}" for name in OF_AN_OUTER_MAKE),
        "make",
        "-C",
        str(ROOT),
        "--no-print-directory",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_plain_make_lists_every_word() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert phony is not None
    listed = re.findall(r"^  ([\w-]+) +\S", make(), re.M)
    assert set(listed) == set(phony[1].split()) - {"help"}


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("make test-vllm", "PENSTOCK_TEST_VLLM=1 .venv/bin/python -m pytest -n0 -s -v tests/vllm"),
        ("make demo", ".venv/bin/penstock demo"),
        ("make quick", ".venv/bin/python -m pytest .* tests/cloud_core/policy .*tests/project"),
        ("make test", ".venv/bin/python -m pytest .*--durations=20 --durations-min=1"),
        ("make bench", ".venv/bin/python -m benchmarks"),
        ("make bench-compiler", ".venv/bin/python -m benchmarks.compiler"),
        ("make simulate", ".venv/bin/python -m benchmarks.simulate"),
        ("make lint", ".venv/bin/lint-imports"),
        ("make proto", ".venv/bin/python scripts/generate_proto.py"),
    ],
)
def test_a_word_runs_what_it_says(words: str, runs: str) -> None:
    printed = [line.strip() for line in make("--dry-run", words.split()[1]).splitlines()]
    assert [line for line in printed if re.fullmatch(runs, line)]


def test_arguments_are_passed_on() -> None:
    assert ".venv/bin/penstock demo --keep" in make("--dry-run", "demo", "ARGS=--keep")


def test_what_ci_imports_exists() -> None:
    """Each extra is installed in an environment of its own, and these modules are imported there."""
    steps = re.findall(r"^ *step .* install_(?:extra|toolchain) \S+ ?(.*)$", (ROOT / ".ci" / "run").read_text(), re.M)
    ours = {
        module
        for step in steps
        for module in step.split()
        if module.startswith(("penstock.", "compiler.", "edge_agent.", "cloud_core."))
    }
    in_the_wheel_only = {"penstock._examples.digits"}
    assert len(ours) > 8
    missing = [
        module
        for module in ours - in_the_wheel_only
        if not any((ROOT / module.replace(".", "/")).with_suffix(suffix).exists() for suffix in (".py", ""))
    ]
    assert missing == []
