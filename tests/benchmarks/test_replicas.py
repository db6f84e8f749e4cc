"""The benchmark of replicas measures both places, and comes to its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import models, replicas


async def test_a_model_is_measured_in_both_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.resnet18(tmp_path, size=32)
    await replicas._compare(model, rounds=1, seconds=0.05)
    await replicas._cycles(model, 1)
    said = capsys.readouterr().out
    assert re.findall(r"^  (inline|process) .* p50 [\d.]+ ms", said, re.M) == ["inline", "process"]
    assert re.search(r"a process adds [+-][\d.]+ ms at one caller .* serves [\d.]+ times", said)
    assert "1 times loaded and unloaded" in said
