"""Replicas with workers of their own that run a scripted model, for tests of what happens to processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from penstock.hosting.process_replica.messages import Model
from penstock.hosting.process_replica.replica import ProcessReplica
from penstock.hosting.process_replica.settings import ReplicaWorkerSettings
from penstock.runtime.scripted import Script
from penstock.wire.tensors import TensorSpec
from tests.factories import variant_spec


def scripted_model(directory: Path, *, max_batch: int = 4, **script: Any) -> Model:
    """A model that doubles ``x``, as a worker is told to load it."""
    made = Script(**script)
    weights = directory / "script.json"
    weights.write_bytes(msgspec.json.encode(made))
    tensors = {name: TensorSpec(name=name, datatype="FP32", shape=(-1, made.width)) for name in ("x", "y")}
    spec = variant_spec(
        "cloud",
        engine="scripted",
        inputs=(tensors["x"],),
        outputs=(tensors["y"],),
        score_output="y",
        max_batch=max_batch,
    )
    return Model(spec=spec, weights=str(weights), golden=None, threads=1)


def scripted_replica(
    directory: Path, *, hang_s: float = 60.0, settings: dict[str, Any] | None = None, **script: Any
) -> ProcessReplica:
    """A replica that is impatient, for a test. It has to be started, and closed."""
    model = scripted_model(directory, **script)
    limits = ReplicaWorkerSettings(**{"backoff_base_s": 0.01, "backoff_max_s": 0.01, **(settings or {})})
    return ProcessReplica("doubles", lambda: model, settings=limits, hang_s=hang_s)
