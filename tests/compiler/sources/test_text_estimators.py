"""Estimators that take text: inputs by name, words cut and lowered as scikit-learn does it, and refusals that help."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from compiler.sources import Exported
from penstock.errors import CompileError, ConfigError, InvalidInput
from penstock.process.python_code import module_in
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array
from tests.compiler.text_models import column

Export = Callable[..., Exported]

FACTORIES = textwrap.dedent('''
    """Fitted on orders and opinions."""
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    SOURCE = np.random.default_rng(0)
    CITIES = SOURCE.choice(np.array(["Köln", "Zürich", "Łódź", "Bern"], object), 200)
    SIZES = SOURCE.choice(np.array(["S", "Größe L"], object), 200)
    ORDERS = np.stack([CITIES, SIZES], axis=1)
    AMOUNTS = SOURCE.normal(size=(200, 2)).astype(np.float32)
    WORDS = ["gut", "schön", "übel", "Ärger", "Öl", "ist", "das", "2", "x"]
    TEXTS = np.array([" ".join(SOURCE.choice(WORDS, SOURCE.integers(0, 8))) for _ in range(200)], object)
    Y = np.array([len(city) for city in CITIES]) + 3 * (AMOUNTS[:, 0] > 0)
    OPINIONS = np.array(["gut" in text or "schön" in text for text in TEXTS])
    MIXED = np.hstack([ORDERS, TEXTS[:, None], AMOUNTS.astype(object)])

    def categories():
        return make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=300)).fit(ORDERS, Y)

    def strict():
        return make_pipeline(OneHotEncoder(), LogisticRegression(max_iter=300)).fit(ORDERS, Y)

    def ordinal():
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        return make_pipeline(encoder, LogisticRegression(max_iter=300)).fit(ORDERS, Y)

    def regression():
        return make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(ORDERS, AMOUNTS[:, 0])

    def texts():
        return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, OPINIONS)

    def pairs_of_words():
        vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\\b\\w+\\b")
        return make_pipeline(vectorizer, LogisticRegression()).fit(TEXTS, OPINIONS)

    def as_written():
        return make_pipeline(TfidfVectorizer(lowercase=False), LogisticRegression()).fit(TEXTS, OPINIONS)

    def mixed():
        parts = [
            ("categories", OneHotEncoder(handle_unknown="ignore"), [0, 1]),
            ("words", TfidfVectorizer(), 2),
            ("numbers", StandardScaler(), [3, 4]),
        ]
        return make_pipeline(ColumnTransformer(parts), LogisticRegression(max_iter=300)).fit(MIXED, Y)

    def mixed_with_examples():
        rows = slice(0, 50)
        given = {"order": ORDERS[rows], "text": TEXTS[rows], "amounts": AMOUNTS[rows]}
        return mixed(), given

    def mixed_with_a_matrix():
        return mixed(), MIXED[:10]

    def missing_word():
        bad = ORDERS[:9].copy()
        bad[3, 1] = None
        return categories(), {"x": bad}

    def accents():
        return make_pipeline(TfidfVectorizer(strip_accents="unicode"), LogisticRegression()).fit(TEXTS, OPINIONS)
''')
TABLE = {
    "order": {"shape": [-1, 2], "datatype": "BYTES"},
    "text": {"shape": [-1, 1], "datatype": "BYTES"},
    "amounts": {"shape": [-1, 2], "low": -2.0, "high": 2.0},
}
OPINIONS = column("ÄRGER und ÖL", "", "Schön ist das", "übel übel", "2 x", "unbekannt", "schön-übel_Öl", "gut " * 400)
ORDERS = np.array([["Köln", "S"], ["Łódź", "Größe L"], ["Atlantis", "S"], ["", ""], ["köln", "🦕"]], object)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "text.py").write_text(FACTORIES)
    return directory


def factories(base: Path) -> Any:
    return module_in(base / "text.py")


def answers(exported: Exported, inputs: dict[str, Array]) -> Array:
    engine = load_engine("onnx", exported.model, EngineOptions())
    assert [spec.name for spec in engine.inputs] == list(inputs)
    (found,) = engine.run(inputs).values()
    return found


@pytest.mark.parametrize("factory", ["categories", "ordinal"])
def test_categories_are_answered_as_scikit_learn_does(base: Path, exported: Export, factory: str) -> None:
    made = exported(f"text.py:{factory}", base, framework="sklearn")
    expected = getattr(factories(base), factory)().predict_proba(ORDERS)
    np.testing.assert_allclose(answers(made, {"x": ORDERS}), expected, atol=1e-5)
    assert made.passthrough


@pytest.mark.parametrize("factory", ["texts", "pairs_of_words", "as_written"])
def test_texts_are_cut_and_lowered_as_scikit_learn_does(base: Path, exported: Export, factory: str) -> None:
    made = exported(f"text.py:{factory}", base, framework="sklearn")
    expected = getattr(factories(base), factory)().predict_proba(OPINIONS[:, 0])
    np.testing.assert_allclose(answers(made, {"x": OPINIONS}), expected, atol=1e-5)


def test_a_regression_on_categories(base: Path, exported: Export) -> None:
    made = exported("text.py:regression", base, framework="sklearn")
    expected = factories(base).regression().predict(ORDERS)
    np.testing.assert_allclose(answers(made, {"x": ORDERS})[:, 0], expected, atol=1e-5)


def test_an_encoder_that_refuses_unknown_words_is_compared_on_known_ones(base: Path, exported: Export) -> None:
    made = exported("text.py:strict", base, framework="sklearn")
    expected = factories(base).strict().predict_proba(ORDERS[:2])
    np.testing.assert_allclose(answers(made, {"x": ORDERS[:2]}), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "settings"), [("mixed", {"inputs": TABLE}), ("mixed_with_examples", {})], ids=["recipe", "examples"]
)
def test_text_and_numbers_are_inputs_of_their_own(
    base: Path, exported: Export, factory: str, settings: dict[str, Any]
) -> None:
    made = exported(f"text.py:{factory}", base, framework="sklearn", **settings)
    amounts = np.array([[0, 0], [1, 2], [-1, 0.5], [3, 3], [0, -2]], np.float32)
    inputs = {"order": ORDERS, "text": OPINIONS[: len(ORDERS)], "amounts": amounts}
    rows = np.hstack([ORDERS, inputs["text"], amounts.astype(object)])
    np.testing.assert_allclose(answers(made, inputs), factories(base).mixed().predict_proba(rows), atol=1e-5)


def test_a_pickle_of_categories(base: Path, exported: Export) -> None:
    joblib.dump(factories(base).categories(), base / "m.joblib")
    made = exported("m.joblib", base, allow_pickle=True)
    assert answers(made, {"x": ORDERS}).shape == (5, len(made.facts["labels"]))


def test_same_text_estimator_same_bytes(base: Path, exported: Export) -> None:
    first, second = (exported("text.py:mixed", base, framework="sklearn", inputs=TABLE) for _ in range(2))
    assert first.model.read_bytes() == second.model.read_bytes()


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        ("mixed", {}, r"takes text in some of its columns; say which columns are text: \[edge.source.inputs.NAME\]"),
        ("mixed", {"inputs": {"x": TABLE["order"]}}, r"source.inputs have 2 columns \(x \[rows, 2\]\), expected 5"),
        ("mixed", {"inputs": {"x": {"shape": [-1], "datatype": "BYTES"}}}, r"source.inputs.x: BYTES \[-1\] given; an"),
        ("mixed_with_a_matrix", {}, "examples of x mix columns of text and of numbers; say which columns are text"),
        ("mixed_with_examples", {"inputs": {"x": {"shape": [-1, 5]}}}, "examples are of order, text, amounts, but so"),
        ("missing_word", {}, r"examples of x\[3, 1\]: 'None' cannot be a BYTES element .*expected text"),
        ("missing_word", {"inputs": {"x": TABLE["order"]}}, r"examples of x\[3, 1\]: 'None' cannot be a BYTES element"),
        ("accents", {}, "cannot convert Pipeline: .*strip_accents"),
    ],
)
def test_what_cannot_be_exported_says_what_to_do(
    base: Path, exported: Export, factory: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((CompileError, ConfigError, InvalidInput), match=message):
        exported(f"text.py:{factory}", base, framework="sklearn", **settings)


def test_an_export_that_lowers_otherwise_is_found(
    base: Path, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.sources import estimators

    monkeypatch.setattr(estimators, "_LOCALE", "C")  # lowers ASCII alone: Ärger stays Ärger
    with pytest.raises(CompileError, match="the export does not answer as the original"):
        exported("text.py:texts", base, framework="sklearn")
