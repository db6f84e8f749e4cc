from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloud_core.serving.replica import Chunk, load_replica, run_batch
from penstock.artifact.manifests import VariantSpec
from penstock.artifact.variant_files import VariantFiles
from penstock.wire.tensors import Array, TensorSpec
from tests.cloud_core.rig import FakeEngine, onnx_spec, rows, write_mlp


def load(path: Path, spec: VariantSpec | None = None, *, inline_below_s: float = 10.0) -> Any:
    spec = spec or onnx_spec("mlp")
    files = VariantFiles(weights=path, golden=None)
    return load_replica(spec, files, threads=1, inline_below_s=inline_below_s)


def test_a_real_model_is_loaded_measured_and_run(tmp_path: Path) -> None:
    replica = load(write_mlp(tmp_path / "m.onnx"))
    assert replica.inline_rows == replica.max_batch == 16
    assert replica.timing.full_batch_s > 0.0
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    together = run_batch(replica.engine, [Chunk(inputs={"x": x[:2]}, rows=2), Chunk(inputs={"x": x[2:]}, rows=3)])
    alone = [replica.engine.run({"x": x[i : i + 1]})["logits"][0] for i in range(5)]
    merged = np.concatenate([part["logits"] for part in together if isinstance(part, dict)])
    np.testing.assert_allclose(merged, alone, rtol=1e-5)
    replica.close()


def test_a_model_that_is_not_fast_enough_gets_a_thread(tmp_path: Path) -> None:
    replica = load(write_mlp(tmp_path / "m.onnx"), inline_below_s=0.0)
    assert replica.inline_rows == 0
    replica.close()


def test_a_model_without_a_free_batch_dimension_is_run_one_chunk_at_a_time(tmp_path: Path) -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=(1, 4))
    path = tmp_path / "echo.json"
    path.write_bytes(msgspec.json.encode([fixed]))
    replica = load(path, onnx_spec("mlp", engine="echo", inputs=(fixed,), outputs=(fixed,), score_output="x"))
    assert replica.max_batch == 1
    replica.close()


def test_only_wanted_outputs_are_computed() -> None:
    class Recording(FakeEngine):
        wanted: Any = None

        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
            self.wanted = outputs
            return super().run(inputs)

    engine = Recording()
    run_batch(engine, [Chunk(inputs={"x": rows(i)}, rows=1, outputs=("y",)) for i in range(2)])
    assert engine.wanted == ("y",)
