"""scikit-learn estimators: probabilities alone come out, as scikit-learn itself gives them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge

from compiler.sources import Exported
from penstock.errors import CompileError, ConfigError
from penstock.runtime import EngineOptions, load_engine

X, Y = load_wine(return_X_y=True)
Export = Callable[..., Exported]


def answers(exported: Exported) -> dict[str, np.ndarray]:
    engine = load_engine("onnx", exported.model, EngineOptions())
    assert [spec.shape[0] for spec in (*engine.inputs, *engine.outputs)] == [-1, -1]
    return engine.run({"x": X.astype(np.float32)})  # type: ignore[return-value]


@pytest.mark.parametrize("factory", ["logistic", "forest", "boosting"])
def test_classifiers_give_their_probabilities(base: Path, exported: Export, factory: str) -> None:
    made = exported(f"estimators.py:{factory}", base, framework="sklearn")
    (name, found), = answers(made).items()  # fmt: skip
    assert name == "probabilities"
    assert found.shape == (178, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    labels = np.array(made.facts["labels"])
    words = np.array(["barolo", "grignolino", "barbera"])[Y] if factory == "forest" else Y.astype(str)
    assert np.mean(labels[found.argmax(axis=1)] == words) > 0.95
    assert made.passthrough
    assert made.parity["cases"][0]["outputs"]["probabilities"]["max_abs"] < 1e-4


def test_regressors_give_values(base: Path, exported: Export) -> None:
    made = exported("estimators:ridge", base, framework="sklearn")
    assert answers(made)["values"].shape == (178, 1)
    assert "labels" not in made.facts


def test_same_estimator_same_bytes(base: Path, exported: Export) -> None:
    first, second = (exported("estimators.py:forest", base, framework="sklearn") for _ in range(2))
    assert first.model.read_bytes() == second.model.read_bytes()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("unfitted", "Ridge is not fitted; call fit"),
        ("no_probabilities", "LinearSVC has no predict_proba.*CalibratedClassifierCV"),
        ("number", "gives int, no scikit-learn estimator"),
        ("fails", "estimators.py:fails fails: RuntimeError: no data here"),
        ("absent", "there is no function 'absent'"),
        ("examples_of_another_shape", r"factory's examples have 5 columns \(x \[rows, 5\]\), expected 13"),
    ],
)
def test_what_a_factory_may_not_give(base: Path, exported: Export, factory: str, message: str) -> None:
    before = list(sys.path)
    with pytest.raises((CompileError, ConfigError), match=message):
        exported(f"estimators.py:{factory}", base, framework="sklearn")
    assert sys.path == before


def test_a_pickle_of_another_version_is_told(
    tmp_path: Path, exported: Export, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sklearn.base.__version__", "1.2.2")
        joblib.dump(Ridge().fit(X, Y), tmp_path / "m.joblib")
    made = exported("m.joblib", tmp_path, allow_pickle=True)
    assert "WARNING: fitted with scikit-learn 1.2.2 and loaded by" in made.how
    assert not recwarn.list  # in the middle of the progress, a library's own words help nobody


def test_pickles_are_loaded_only_when_that_is_allowed(tmp_path: Path, exported: Export) -> None:
    joblib.dump(RandomForestClassifier(4, random_state=0).fit(X, Y), tmp_path / "m.joblib")
    with pytest.raises(ConfigError, match="runs whatever code its author put in.*allow_pickle = true"):
        exported("m.joblib", tmp_path)
    assert answers(exported("m.joblib", tmp_path, allow_pickle=True))["probabilities"].shape == (178, 3)


def test_a_refused_pickle_is_never_opened(tmp_path: Path, exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("the pickle was loaded")

    (tmp_path / "m.pkl").write_bytes(b"cos\nsystem\n")
    monkeypatch.setattr(joblib, "load", opened)
    with pytest.raises(ConfigError, match="is pickled"):
        exported("m.pkl", tmp_path)


def test_a_damaged_pickle_is_an_error_of_ours(tmp_path: Path, exported: Export) -> None:
    (tmp_path / "m.pkl").write_bytes(b"junk")
    with pytest.raises(CompileError, match="m.pkl cannot be loaded by scikit-learn"):
        exported("m.pkl", tmp_path, allow_pickle=True)
