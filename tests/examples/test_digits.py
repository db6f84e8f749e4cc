"""The digits models are what the demo says they are: a teacher blind to polarity, two fair students, and one that is
fine on paper only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from compiler.artifact.evaluation import CascadeEvaluation
from compiler.cache.steps import StepCache
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from examples.digits import data, export, train
from penstock.artifact.layout import Layout
from penstock.policy import confidence
from penstock.runtime import EngineOptions, load_engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("digits")
    assert train.train(directory).is_new
    return directory


@pytest.fixture(scope="module")
def compiled(models: Path) -> dict[str, compilation.Compiled]:
    cache, quiet = StepCache(models / "cache"), Lines(lambda line: None)
    return {
        name: compilation.compile_recipe(
            recipes.load(models / f"{name}.toml"), models / name, cache=cache, watcher=quiet
        )
        for name in train.VERSIONS
    }


def cascade_of(compiled: compilation.Compiled) -> CascadeEvaluation:
    found = compiled.evaluation.targets[0].cascade
    assert found is not None
    return found


def logits_of(path: Path, x: np.ndarray) -> np.ndarray:
    answer: np.ndarray = load_engine("onnx", path, EngineOptions()).run({"x": x})["logits"]
    return answer


# --- data


def test_every_digit_is_in_exactly_one_split() -> None:
    splits = data.load(0)
    assert {name: len(split.x) for name, split in splits.items()} == dict(data.SPLIT_SIZES)
    rows = np.concatenate([split.x for split in splits.values()])
    assert rows.shape == (1797, 64)
    assert rows.dtype == np.float32
    assert (rows.min(), rows.max()) == (0, 16)
    assert len(np.unique(rows, axis=0)) == 1797  # no digit twice: nothing leaks from one split into another


def test_another_seed_is_another_split() -> None:
    assert not np.array_equal(data.load(0)["test"].x, data.load(1)["test"].x)


def test_inverting_twice_changes_nothing() -> None:
    x = data.load(0)["test"].x
    assert not np.array_equal(data.inverted(x), x)
    np.testing.assert_array_equal(data.inverted(data.inverted(x)), x)


def test_shifts_move_by_one_pixel_and_keep_labels() -> None:
    image = np.zeros((1, 64), np.float32)
    image[0, 3 * 8 + 4] = 16
    shifted = data.shifted(data.Split(x=image, y=np.array([7])))
    assert sorted(divmod(int(row.argmax()), 8) for row in shifted.x) == [(2, 4), (3, 3), (3, 4), (3, 5), (4, 4)]
    assert shifted.y.tolist() == [7] * 5


# --- export


def test_exported_perceptron_answers_like_the_trained_one(tmp_path: Path) -> None:
    split = data.load(0)["tune"]
    model = MLPClassifier((8,), max_iter=200, tol=1e-2, random_state=0).fit(split.x / np.float32(16), split.y)
    (tmp_path / "m.onnx").write_bytes(export.mlp(model.coefs_, model.intercepts_))
    probabilities = confidence.softmax(logits_of(tmp_path / "m.onnx", split.x))
    np.testing.assert_allclose(probabilities, model.predict_proba(split.x / np.float32(16)), atol=1e-5)


def test_exported_kernel_machine_computes_its_formula(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    centres = source.uniform(-1, 1, (5, 64)).astype(np.float32)
    coefficients = source.normal(size=(5, 10)).astype(np.float32)
    x = source.integers(0, 17, (7, 64)).astype(np.float32)
    (tmp_path / "k.onnx").write_bytes(export.kernel_machine(centres, coefficients, gamma=0.05, scale=5.0))

    def near(c: np.ndarray) -> np.ndarray:
        return np.exp(-0.05 * ((c[:, None, :] - centres[None]) ** 2).sum(axis=2))

    c = x.astype(np.float64) / 8 - 1
    np.testing.assert_allclose(
        logits_of(tmp_path / "k.onnx", x), 5 * (near(c) + near(-c)) @ coefficients, rtol=1e-3, atol=1e-4
    )


# --- training


def test_accuracies_are_the_ones_the_demo_needs(models: Path) -> None:
    accuracy = train.train(models).accuracy
    assert accuracy["teacher"] >= 0.98
    assert 0.93 <= accuracy["student_v1"] <= 0.96
    assert accuracy["student_v1"] + 0.01 <= accuracy["student_v2"] <= 0.98
    assert accuracy["student_v3"] >= 0.95  # on its own data: fine on paper


def test_the_teacher_does_not_care_about_polarity(models: Path) -> None:
    x, _ = train.test_split(models)
    light, dark = (logits_of(models / "teacher.onnx", version) for version in (x, data.inverted(x)))
    np.testing.assert_allclose(light, dark, atol=1e-3)


def test_a_second_run_trains_nothing(models: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in models.glob("*.*")}
    again = train.train(models)
    assert not again.is_new
    assert {path.name: path.stat().st_mtime_ns for path in models.glob("*.*")} == before


def test_a_damaged_file_or_another_seed_is_not_taken_for_done(models: Path, tmp_path: Path) -> None:
    done = json.loads((models / "trained.json").read_bytes())
    for name in done["files"]:
        (tmp_path / name).write_bytes((models / name).read_bytes())
    (tmp_path / "trained.json").write_bytes((models / "trained.json").read_bytes())
    assert train._already_there(tmp_path, done["key"]) == done["accuracy"]
    assert train._already_there(tmp_path, train._key(1)) is None
    (tmp_path / "teacher.onnx").write_bytes(b"truncated")
    assert train._already_there(tmp_path, done["key"]) is None
    (tmp_path / "trained.json").write_bytes(b"{")
    assert train._already_there(tmp_path, done["key"]) is None


def test_a_request_is_a_few_hundred_bytes(models: Path) -> None:
    x, _ = train.test_split(models)
    assert 64 * 4 < train.request_bytes(x[:1]) < 400


# --- the story


@pytest.mark.parametrize("name", train.VERSIONS)
def test_every_version_earns_its_certificate_on_paper(compiled: dict[str, compilation.Compiled], name: str) -> None:
    cascade = cascade_of(compiled[name])
    assert cascade.certificate is not None
    assert cascade.certificate.max_harm == 0.02
    assert cascade.certificate.coverage >= 0.6
    assert 0.02 <= cascade.certificate.audit_max_harm <= 0.04  # tight enough for an audit to notice
    assert cascade.figures is not None
    assert cascade.figures.harm.value <= 0.02


def test_all_versions_share_one_cloud_variant(models: Path, compiled: dict[str, compilation.Compiled]) -> None:
    artifacts = [Layout(compiled[name].directory).artifact() for name in train.VERSIONS]
    assert len({artifact.variant("cloud").digest for artifact in artifacts}) == 1
    assert len({artifact.digest for artifact in artifacts}) == 3


@pytest.mark.parametrize(("name", "is_good"), [("v1", True), ("v2", True), ("v3", False)])
def test_in_service_only_v3_breaks_its_promise(
    models: Path, compiled: dict[str, compilation.Compiled], name: str, is_good: bool
) -> None:
    """What the agents will meet: digits light on dark, for every version."""
    x, y = train.test_split(models)
    layout, certificate = Layout(compiled[name].directory), cascade_of(compiled[name]).certificate
    assert certificate is not None
    edge = logits_of(layout.blobs.path(layout.artifact().variant("edge").weights.digest), x)
    cloud = logits_of(models / "teacher.onnx", x).argmax(axis=1)
    kept = confidence.score(edge, kind="logits", temperature=certificate.temperature) >= certificate.threshold
    disagreement = float(np.mean(kept & (edge.argmax(axis=1) != cloud)))
    harm = float(np.mean(kept & (edge.argmax(axis=1) != y) & (cloud == y)))
    if is_good:
        assert harm <= certificate.max_harm
        assert disagreement <= certificate.audit_max_harm
        assert kept.mean() >= 0.6
    else:
        assert disagreement >= 0.15
        assert harm >= 0.15
