from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_core.observing.references import carried_reference
from cloud_core.registry.registry import Registry
from penstock.artifact import manifests, row_reference
from penstock.artifact.row_reference import Reference
from penstock.policy.distributions import described
from tests.cloud_core.rig import onnx_layout

CARRIED = Reference(rows=50, columns=(described("x[0]", np.arange(50.0)),))


async def test_the_newest_reference_of_a_version_is_found(registry: Registry, put: Any, tmp_path: Path) -> None:
    layout = onnx_layout(tmp_path, "v1")
    older = Reference(rows=1, columns=())
    for one in (older, CARRIED):
        layout.attach(manifests.REFERENCE, row_reference.encode(one), title="reference.json")
    await put(registry, layout)
    assert carried_reference(registry, "mlp", "v1") == CARRIED


async def test_a_version_without_one_and_one_that_cannot_be_read_have_none(
    registry: Registry, put: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await put(registry, onnx_layout(tmp_path, "v1"))
    assert carried_reference(registry, "mlp", "v1") is None
    broken = onnx_layout(tmp_path, "v2", seed=2)
    broken.attach(manifests.REFERENCE, b"{}", title="reference.json")
    await put(registry, broken)
    assert carried_reference(registry, "mlp", "v2") is None
    assert [record.getMessage() for record in caplog.records] == ["a reference cannot be read"]
