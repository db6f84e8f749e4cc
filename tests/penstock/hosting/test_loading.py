"""What a variant has to show before it may answer, and what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.artifact.manifests import VariantSpec
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import ArtifactError, InvalidInput, PenstockError
from penstock.hosting import loading
from penstock.hosting.loading import Loaded, warm_up
from penstock.wire.tensors import Array, TensorSpec
from tests.factories import X, echo_spec

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def spec_of(*tensors: TensorSpec, **changes: Any) -> VariantSpec:
    described = tensors or (X,)
    values = {"inputs": described, "outputs": described, "score_output": described[0].name, "max_batch": 8}
    return echo_spec(model="toy", **values | changes)


def vectors(inputs: Array, outputs: Array) -> bytes:
    return golden.encode(Golden(inputs={"x": inputs}, outputs={"x": outputs}))


def load(directory: Path, spec: VariantSpec, *, weights: Sequence[TensorSpec] = (X,), golden: Any = None) -> Loaded:
    path = directory / "model.json"
    path.write_bytes(msgspec.json.encode(weights))
    return loading.load(spec, VariantFiles(weights=path, golden=golden), threads=1)


def test_a_variant_that_gives_its_golden_outputs_again_is_loaded_and_measured(tmp_path: Path) -> None:
    loaded = load(tmp_path, spec_of(), golden=vectors(ROWS, ROWS + np.float32(5e-4)))
    assert loaded.timing.is_batchable
    assert loaded.max_batch == 8
    assert loaded.timing.one_row_s > 0.0
    assert loaded.timing.full_batch_s > 0.0


def test_a_dimension_may_be_free_on_one_side(tmp_path: Path) -> None:
    load(tmp_path, spec_of(TensorSpec(name="x", datatype="FP32", shape=(-1, -1))))
    load(tmp_path, spec_of(), weights=[TensorSpec(name="x", datatype="FP32", shape=(-1, -1))])


@pytest.mark.parametrize(
    ("described", "golden", "refusal"),
    [
        (spec_of(TensorSpec(name="x", datatype="FP32", shape=(-1, 5))), None, r"inputs are x FP32\[-1, 4\], described"),
        (spec_of(TensorSpec(name="x", datatype="FP32", shape=(-1, 4, 1))), None, "inputs are x FP32"),
        (spec_of(TensorSpec(name="x", datatype="FP64", shape=(-1, 4))), None, "inputs are x FP32"),
        (spec_of(TensorSpec(name="z", datatype="FP32", shape=(-1, 4))), None, "described z FP32"),
        (spec_of(X, TensorSpec(name="y", datatype="FP32", shape=(-1,))), None, "described x FP32.*, y FP32"),
        (spec_of(outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)), None, "outputs are x FP32"),
        (spec_of(score_output="logits"), None, "score_output 'logits' is no output"),
        (spec_of(), vectors(ROWS, ROWS + np.float32(0.01)), "off by 0.01"),
        (spec_of(), vectors(ROWS, np.full_like(ROWS, np.nan)), "off by nan"),
        (spec_of(), vectors(ROWS, ROWS[:1]), "expected float32"),
        (spec_of(), vectors(ROWS.astype("f8"), ROWS), "do not fit the model"),
        (spec_of(), golden.encode(Golden(inputs={"z": ROWS}, outputs={"x": ROWS})), "do not fit the model"),
        (spec_of(), b"junk", "golden vectors"),
    ],
)
def test_a_variant_that_does_not_prove_itself_is_refused(
    tmp_path: Path, described: VariantSpec, golden: bytes | None, refusal: str
) -> None:
    with pytest.raises(ArtifactError, match=f"toy, edge variant for any: .*{refusal}"):
        load(tmp_path, described, golden=golden)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="not an echo model"):
        loading.load(spec_of(), VariantFiles(weights=tmp_path / "model.json", golden=None), threads=1)


def test_a_variant_without_golden_vectors_is_loaded_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(tmp_path, spec_of()).timing.full_batch_s > 0.0
    assert "no golden vectors" in caplog.text


def test_a_model_of_a_fixed_batch_runs_as_it_is(tmp_path: Path) -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=(2, 4))
    loaded = load(tmp_path, spec_of(fixed), weights=[fixed], golden=vectors(ROWS, ROWS))
    assert loaded.max_batch == 1
    assert not loaded.timing.is_batchable
    assert loaded.timing.full_batch_s == loaded.timing.one_row_s > 0.0


def test_text_is_warmed_up_with_empty_strings(tmp_path: Path) -> None:
    text = TensorSpec(name="x", datatype="BYTES", shape=(-1, 1))
    assert load(tmp_path, spec_of(text), weights=[text]).timing.is_batchable


@dataclass
class Recording:
    """Gives back its input, and keeps what it was given."""

    inputs: tuple[TensorSpec, ...] = (X,)
    outputs: tuple[TensorSpec, ...] = (X,)
    seen: list[Array] = field(default_factory=list)
    is_closed: bool = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.seen.append(inputs["x"])
        return {"x": inputs["x"]}

    def close(self) -> None:
        self.is_closed = True


class Summing(Recording):
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {"x": inputs["x"].sum(axis=0, keepdims=True)}


class Refusing(Recording):
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        raise InvalidInput("too short")


def test_golden_rows_are_repeated_to_a_full_batch() -> None:
    engine = Recording()
    warm_up(engine, 5, {"x": ROWS})
    assert {len(array) for array in engine.seen} == {1, 2, 5}
    full = next(array for array in engine.seen if len(array) == 5)
    np.testing.assert_array_equal(full, np.concatenate([ROWS, ROWS, ROWS[:1]]))


def test_golden_rows_say_how_long_a_free_dimension_is() -> None:
    engine = Recording(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),))
    warm_up(engine, 5, {"x": ROWS})
    assert {array.shape[1] for array in engine.seen} == {4}


def test_a_model_whose_outputs_do_not_keep_rows_is_not_batched() -> None:
    timing = warm_up(Summing(), 8, {})
    assert not timing.is_batchable
    assert timing.service.of(1) == timing.one_row_s > 0.0
    assert warm_up(Recording(), 8, {}).is_batchable


def test_a_model_with_free_dimensions_that_refuses_the_smallest_is_served_unmeasured() -> None:
    timing = warm_up(Refusing(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),)), 8, {})
    assert timing.is_batchable
    assert timing.full_batch_s == 0.0


@pytest.mark.parametrize(("samples", "what"), [({}, "zeros"), ({"x": ROWS}, "golden rows")])
def test_a_model_that_fails_on_inputs_of_its_own_shape_is_refused(samples: dict[str, Array], what: str) -> None:
    with pytest.raises(ArtifactError, match=f"fails on .*{what}.*: too short"):
        warm_up(Refusing(), 8, samples)


@pytest.mark.parametrize("made", [Refusing(), Recording(outputs=())], ids=["fails", "is another model"])
def test_an_engine_that_is_refused_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Recording) -> None:
    monkeypatch.setattr(loading, "load_engine", lambda *_: made)
    with pytest.raises(PenstockError):
        loading.load(spec_of(), VariantFiles(weights=tmp_path, golden=None), threads=1)
    assert made.is_closed


@pytest.mark.parametrize(
    ("took_s", "threads", "tried"),
    [
        ({1: 0.0001}, 1, [1]),  # short: nothing to gain
        ({1: 0.040, 2: 0.022, 4: 0.012}, 4, [1, 2, 4, 4]),
        ({1: 0.040, 2: 0.022, 4: 0.021}, 2, [1, 2, 4, 2]),  # four are hardly better than two
        ({1: 0.040, 2: 0.045}, 1, [1, 2, 1]),
    ],
)
def test_one_row_gets_as_many_threads_as_make_it_faster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    took_s: Mapping[int, float],
    threads: int,
    tried: Sequence[int],
) -> None:
    made: list[int] = []
    load_engine = loading.load_engine

    def noted(name: str, path: Path, options: Any) -> Any:
        made.append(options.threads)
        return load_engine(name, path, options)

    monkeypatch.setattr(loading, "load_engine", noted)
    monkeypatch.setattr(loading, "_measured_s", lambda engine, inputs: took_s[made[-1]])
    path = tmp_path / "model.json"
    path.write_bytes(msgspec.json.encode([X]))
    loaded = loading.load(spec_of(), VariantFiles(weights=path, golden=None), threads=0, cpus=4)
    assert (loaded.threads, made) == (threads, tried)
    assert loaded.engine.run({"x": ROWS})  # the one that is left is open


def test_a_number_of_threads_that_is_set_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(msgspec.json.encode([X]))
    assert loading.load(spec_of(), VariantFiles(weights=path, golden=None), threads=3, cpus=4).threads == 3
