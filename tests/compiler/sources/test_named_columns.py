"""Pipelines that look for the columns of a data frame by name: an input for each column that is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC

from compiler.sources import Exported
from penstock.errors import CompileError, ConfigError
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array

Export = Callable[..., Exported]

SOURCE = np.random.default_rng(0)
ROWS = 300
FRAME = pd.DataFrame(
    {
        "user id": [f"u{row}" for row in range(ROWS)],
        "age (years)": SOURCE.integers(18, 90, ROWS),
        "year": SOURCE.choice([2019, 2020, 2021], ROWS),
        "city": SOURCE.choice(["Bern", "Zürich", "Łódź"], ROWS),
        "note": [" ".join(SOURCE.choice(["gut", "übel", "naja"], 3)) for _ in range(ROWS)],
        "is_member": SOURCE.random(ROWS) < 0.4,
    }
)
IS_LATE = (FRAME["age (years)"] / 40 + (FRAME.city == "Bern") + FRAME.is_member > 2.2).map({True: "yes", False: "no"})
INPUTS = {"age (years)": "FP32", "year": "FP32", "city": "BYTES", "note": "BYTES", "is_member": "FP32"}


def columns() -> ColumnTransformer:
    """Numbers with gaps, categories that are numbers and that are words, text, and a flag; the user's id is dropped."""
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age (years)"]),
            ("years", OneHotEncoder(), ["year"]),
            ("words", words, ["city"]),
            ("note", TfidfVectorizer(), "note"),
            ("flag", "passthrough", ["is_member"]),
        ]
    )


def exported_from(estimator: Any, base: Path, export: Export) -> Exported:
    base.mkdir(exist_ok=True)
    joblib.dump(estimator, base / "m.joblib")
    return export("m.joblib", base, allow_pickle=True)


def answers(made: Exported, frame: pd.DataFrame) -> Array:
    engine = load_engine("onnx", made.model, EngineOptions())
    kinds = {"FP32": np.float32, "BYTES": object}
    inputs = {spec.name: frame[[spec.name]].to_numpy().astype(kinds[spec.datatype]) for spec in engine.inputs}
    (found,) = engine.run(inputs).values()
    return found


def kinds_of(made: Exported) -> dict[str, str]:
    return {spec.name: spec.datatype for spec in load_engine("onnx", made.model, EngineOptions()).inputs}


@pytest.mark.parametrize("is_searched", [False, True], ids=["pipeline", "grid search"])
def test_each_column_that_is_read_is_an_input_of_its_kind(tmp_path: Path, exported: Export, is_searched: bool) -> None:
    estimator = make_pipeline(columns(), LogisticRegression(max_iter=300))
    if is_searched:
        estimator = GridSearchCV(estimator, {"logisticregression__C": [1.0]}, cv=2)
    made = exported_from(estimator.fit(FRAME, IS_LATE), tmp_path / "m", exported)
    assert kinds_of(made) == INPUTS
    assert made.facts["columns"] == {name: [name] for name in INPUTS}
    assert made.facts["labels"] == ["no", "yes"]
    np.testing.assert_allclose(answers(made, FRAME), estimator.predict_proba(FRAME), atol=1e-5)


def test_columns_that_a_selector_chose_and_the_remainder(tmp_path: Path, exported: Export) -> None:
    frame = FRAME[["age (years)", "city", "is_member"]].astype({"city": object})
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    words = ColumnTransformer([("c", encoder, make_column_selector(dtype_include=object))], remainder="passthrough")
    estimator = make_pipeline(words, RandomForestClassifier(5, max_depth=4, random_state=0)).fit(frame, IS_LATE)
    made = exported_from(estimator, tmp_path / "m", exported)
    assert kinds_of(made) == {"age (years)": "FP32", "city": "BYTES", "is_member": "FP32"}
    np.testing.assert_allclose(answers(made, frame), estimator.predict_proba(frame), atol=1e-5)


def test_columns_of_numbers_that_are_all_treated_alike_stay_one_input(tmp_path: Path, exported: Export) -> None:
    frame = FRAME[["age (years)", "year"]]
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, IS_LATE)
    made = exported_from(estimator, tmp_path / "m", exported)
    assert kinds_of(made) == {"x": "FP32"}
    assert made.facts["columns"] == {"x": ["age (years)", "year"]}


def test_calibration_around_the_columns_says_where_it_belongs(tmp_path: Path, exported: Export) -> None:
    around = CalibratedClassifierCV(make_pipeline(columns(), LinearSVC()), cv=2).fit(FRAME, IS_LATE)
    with pytest.raises(
        CompileError, match=r"cannot convert CalibratedClassifierCV.*make_pipeline\(columns, Calibrated"
    ):
        exported_from(around, tmp_path / "m", exported)


@pytest.mark.parametrize("numbers", [[16_777_217, 5], [0.1, 0.5]], ids=["large", "fractions"])
def test_categories_that_an_input_cannot_hold_are_refused(
    tmp_path: Path, exported: Export, numbers: list[float]
) -> None:
    """As FP32 they are other numbers, which the encoder does not know: every such row would be answered wrongly."""
    frame = FRAME[["city"]].assign(code=[numbers[row % 2] for row in range(ROWS)])
    encoder = ColumnTransformer([("codes", OneHotEncoder(handle_unknown="ignore"), ["code", "city"])])
    estimator = make_pipeline(encoder, LogisticRegression()).fit(frame, IS_LATE)
    with pytest.raises(ConfigError, match=f"encodes the number {numbers[0]}, which an input in FP32 cannot hold"):
        exported_from(estimator, tmp_path / "m", exported)
