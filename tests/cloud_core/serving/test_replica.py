from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_core.serving.replica import Chunk, load_replica, run_batch, warm_up
from penstock.artifact.blobs import digest_of_file
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ArtifactError, DigestMismatch, InvalidInput
from penstock.wire.tensors import Array, TensorSpec
from tests.cloud_core.rig import FakeEngine, onnx_spec, rows, write_mlp


def load(path: Path, spec: VariantSpec | None = None, *, inline_below_s: float = 10.0) -> Any:
    spec = spec or onnx_spec("mlp")
    return load_replica(spec, path, digest_of_file(path), threads=1, inline_below_s=inline_below_s)


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


def test_tampered_weights_are_never_loaded(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "m.onnx")
    digest = digest_of_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DigestMismatch):
        load_replica(onnx_spec("mlp"), path, digest, threads=1, inline_below_s=0.0)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="cannot load"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": (TensorSpec(name="z", datatype="FP32", shape=(-1, 4)),)},
        {"inputs": (TensorSpec(name="x", datatype="FP64", shape=(-1, 4)),)},
        {"outputs": (TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 3)),)},
    ],
)
def test_a_model_that_is_not_what_its_spec_says_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="variant spec says"):
        load(write_mlp(tmp_path / "m.onnx"), onnx_spec("mlp", **changes))


def test_a_model_without_a_free_batch_dimension_is_run_one_chunk_at_a_time(tmp_path: Path) -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=(1, 4))
    path = tmp_path / "echo.json"
    path.write_bytes(msgspec.json.encode([fixed]))
    replica = load(path, onnx_spec("mlp", engine="echo", inputs=(fixed,), outputs=(fixed,)))
    assert replica.max_batch == 1
    replica.close()


def test_a_model_whose_outputs_do_not_keep_rows_is_not_batched() -> None:
    class Summing(FakeEngine):
        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
            return {"y": super().run(inputs)["y"].sum(axis=0, keepdims=True)}

    assert not warm_up(Summing(), 8).is_batchable
    assert warm_up(FakeEngine(), 8).is_batchable


class _Refusing(FakeEngine):
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        raise InvalidInput("too short")


def test_a_model_with_free_shapes_that_refuses_the_smallest_is_served_unmeasured() -> None:
    engine = _Refusing(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),))
    assert warm_up(engine, 8).full_batch_s == 0.0


def test_a_model_that_fails_on_zeros_of_its_own_shape_is_not_served() -> None:
    with pytest.raises(ArtifactError, match="fails on zeros"):
        warm_up(_Refusing(), 8)


def test_only_wanted_outputs_are_computed() -> None:
    class Recording(FakeEngine):
        wanted: Any = None

        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
            self.wanted = outputs
            return super().run(inputs)

    engine = Recording()
    run_batch(engine, [Chunk(inputs={"x": rows(i)}, rows=1, outputs=("y",)) for i in range(2)])
    assert engine.wanted == ("y",)
