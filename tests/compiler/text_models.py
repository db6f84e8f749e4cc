"""scikit-learn models that take text, exported by skl2onnx as a user would, with recipes and examples for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import skl2onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from penstock.wire.tensors import Array

CITIES = ("Köln", "Zürich", "München", "Bern", "Århus", "Łódź", "Wien", "Graz")
SIZES = ("S", "M", "Größe L")
GOOD, BAD = ("gut", "schön", "prima", "toll"), ("schlecht", "übel", "Ärger", "mies")
OTHER_WORDS = ("heute", "das", "Wetter", "ist", "war", "Öl", "kein")
SPLITS = {"fit": 300, "certify": 700, "test": 200}
WORDS = r"[\p{L}\p{N}_]{2,}"
"""What skl2onnx's tokenizer has to be told to cut words where scikit-learn does."""

Inputs = Mapping[str, Array]
Estimators = Mapping[str, Any]
"""By role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A pair of estimators, ready to compile in ``directory``.

    Attributes:
        test: the test split by input name.
        awkward: rows with an unseen word, no text, and letters outside of ASCII.
        matrix: makes what the estimators take of inputs by name.
    """

    name: str
    directory: Path
    estimators: Estimators
    test: Inputs
    awkward: Inputs
    matrix: Callable[[Inputs], Any]

    def expected(self, role: str, inputs: Inputs) -> Array:
        """scikit-learn's own probabilities."""
        found: Array = self.estimators[role].predict_proba(self.matrix(inputs)).astype(np.float32)
        return found


def make(kind: str, directory: Path) -> TextModel:
    """Fit, export and write everything that ``penstock compile recipe.toml`` needs."""
    directory.mkdir(parents=True, exist_ok=True)
    return KINDS[kind](directory)


def column(*items: str) -> Array:
    """An input of one text column."""
    return np.array(items, dtype=object)[:, None]


def _categories(directory: Path) -> TextModel:
    cities, _, y = _orders()
    names = np.array(["billig", "mittel", "teuer"], dtype=object)
    encoder = OneHotEncoder(handle_unknown="ignore")
    estimators = _fitted(lambda head: make_pipeline(encoder, head), cities, names[y])
    _export(directory, estimators, [("x", StringTensorType([None, 2]))])
    labels = str(tuple(map(str, names))).replace("(", "[").replace(")", "]")
    _write(directory, "categories", {"x": cities}, y, more=f"labels = {labels}")
    awkward = np.array([["Köln", "Größe L"], ["Atlantis", "M"], ["", ""], ["köln", "S"], ["ÅRHUS", "🦕"]], object)
    return _model("categories", directory, estimators, {"x": cities}, {"x": awkward}, lambda given: given["x"])


def _strict(directory: Path) -> TextModel:
    """Categories whose encoder refuses every other word, which is scikit-learn's default."""
    cities, _, y = _orders()
    estimators = _fitted(lambda head: make_pipeline(OneHotEncoder(), head), cities, y)
    _export(directory, estimators, [("x", StringTensorType([None, 2]))])
    _write(directory, "strict", {"x": cities}, y)
    awkward = np.array([["Köln", "Größe L"]], object)
    return _model("strict", directory, estimators, {"x": cities}, {"x": awkward}, lambda given: given["x"])


def _ordinal(directory: Path) -> TextModel:
    cities, _, y = _orders()
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    estimators = _fitted(lambda head: make_pipeline(encoder, head), cities, y)
    _export(directory, estimators, [("x", StringTensorType([None, 2]))])
    _write(directory, "ordinal", {"x": cities}, y)
    awkward = np.array([["Köln", "Größe L"], ["Atlantis", "M"], ["", ""], ["Łódź", "s"]], object)
    return _model("ordinal", directory, estimators, {"x": cities}, {"x": awkward}, lambda given: given["x"])


def _mixed(directory: Path) -> TextModel:
    cities, amounts, y = _orders()

    def pipeline(head: Any) -> Any:
        encoder = OneHotEncoder(handle_unknown="ignore")
        return make_pipeline(ColumnTransformer([("c", encoder, [0, 1]), ("n", StandardScaler(), [2, 3])]), head)

    def matrix(given: Inputs) -> Any:
        return np.hstack([given["city"], given["size"], given["amounts"].astype(object)])

    inputs = {"city": cities[:, :1], "size": cities[:, 1:], "amounts": amounts}
    estimators = _fitted(pipeline, matrix(inputs), y)
    text = StringTensorType([None, 1])
    _export(directory, estimators, [("city", text), ("size", text), ("amounts", FloatTensorType([None, 2]))])
    _write(directory, "mixed", inputs, y)
    awkward = {
        "city": column("Łódź", "Atlantis", "", "Bern"),
        "size": column("Größe L", "M", "", "🦕"),
        "amounts": np.array([[0, 0], [1, -1], [1e6, 0.5], [-3, 2]], np.float32),
    }
    return _model("mixed", directory, estimators, inputs, awkward, matrix)


def _pickles(directory: Path) -> TextModel:
    """The estimators of ``mixed`` as they are, for the compiler to export."""
    model = _mixed(directory)
    tables = ""
    for role, estimator in model.estimators.items():
        (directory / f"{role}.onnx").unlink()
        joblib.dump(estimator, directory / f"{role}.joblib")
        tables += f"[{role}.source]\nallow_pickle = true\n"
        for name, array in model.test.items():
            datatype = "BYTES" if array.dtype == object else "FP32"
            tables += f'[{role}.source.inputs.{name}]\nshape = [-1, {array.shape[1]}]\ndatatype = "{datatype}"\n'
    recipe = directory / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(".onnx", ".joblib").replace('"mixed"', '"pickles"') + tables)
    return replace(model, name="pickles")


def _texts(directory: Path, locale: str = "C.UTF-8") -> TextModel:
    texts, y = _opinions()
    estimators = _fitted(lambda head: make_pipeline(TfidfVectorizer(), head), texts[:, 0], y)
    options = {"locale": locale, "tokenexp": WORDS}
    _export(directory, estimators, [("x", StringTensorType([None, 1]))], options)
    _write(directory, "texts", {"x": texts}, y)
    awkward = column("ÄRGER und ÖL", "", "unbekannt", "schön-schön", "  ", "Das WETTER ist Übel", "gut " * 500)
    return _model("texts", directory, estimators, {"x": texts}, {"x": awkward}, lambda given: given["x"][:, 0])


def _texts_of_a_locale_that_is_not_here(directory: Path) -> TextModel:
    return _texts(directory, locale="tlh_QO.UTF-8")


KINDS: Mapping[str, Callable[[Path], TextModel]] = {
    "categories": _categories,
    "strict": _strict,
    "ordinal": _ordinal,
    "mixed": _mixed,
    "texts": _texts,
    "pickles": _pickles,
    "foreign locale": _texts_of_a_locale_that_is_not_here,
}


def _orders() -> tuple[Array, Array, Array]:
    """Cities and sizes, two amounts, and one of three classes that depends on all of them."""
    source = np.random.default_rng(0)
    rows = sum(SPLITS.values())
    words = [source.choice(np.array(known, dtype=object), rows) for known in (CITIES, SIZES)]
    amounts = source.normal(size=(rows, 2)).astype(np.float32)
    worth = np.array([CITIES.index(c) + 3 * SIZES.index(s) for c, s in zip(*words, strict=True)]) + 2 * amounts[:, 0]
    return np.stack(words, axis=1), amounts, np.digitize(worth, np.quantile(worth, [1 / 3, 2 / 3]))


def _opinions() -> tuple[Array, Array]:
    source = np.random.default_rng(1)
    known = (*GOOD, *BAD, *OTHER_WORDS)
    texts = [" ".join(source.choice(known, source.integers(0, 9))) for _ in range(sum(SPLITS.values()))]
    y = [sum(word in text for word in GOOD) > sum(word in text for word in BAD) for text in texts]
    return column(*texts), np.array(y, dtype=np.int64)


def _fitted(pipeline: Callable[[Any], Any], x: Any, y: Array) -> Estimators:
    fit = slice(0, SPLITS["fit"])
    heads = {"edge": LogisticRegression(max_iter=500, C=0.05), "cloud": RandomForestClassifier(20, random_state=0)}
    return {role: pipeline(head).fit(x[fit], y[fit]) for role, head in heads.items()}


def _export(directory: Path, estimators: Estimators, types: Any, options: Mapping[str, str] | None = None) -> None:
    for role, estimator in estimators.items():
        wanted: dict[int, Any] = {id(estimator): {"zipmap": False}}
        if options is not None:
            wanted[id(estimator[0])] = dict(options)
        opsets = {"": 21, "ai.onnx.ml": 3}
        model = skl2onnx.convert_sklearn(estimator, role, types, options=wanted, target_opset=opsets)
        onnx.save(model, directory / f"{role}.onnx")


def _write(directory: Path, name: str, inputs: Inputs, y: Array, *, more: str = "") -> None:
    arrays, start = {}, 0
    for split, rows in SPLITS.items():
        for key, array in {**inputs, "y": y}.items():
            plain = array.astype(np.str_) if array.dtype == object else array
            arrays[f"{key}_{split}"] = plain[start : start + rows]
        start += rows
    np.savez(directory / "data.npz", **arrays)
    (directory / "recipe.toml").write_text(
        f"""
[model]
name = "{name}"
output = "probabilities"
output_kind = "probabilities"
{more}

[edge]
model = "edge.onnx"

[cloud]
model = "cloud.onnx"

[data]
source = "data.npz"
repeats = "natural"

[certificate]
max_harm = 0.1
"""
    )


def _model(
    name: str,
    directory: Path,
    estimators: Estimators,
    inputs: Inputs,
    awkward: Inputs,
    matrix: Callable[[Inputs], Any],
) -> TextModel:
    test = {key: array[-SPLITS["test"] :] for key, array in inputs.items()}
    return TextModel(name=name, directory=directory, estimators=estimators, test=test, awkward=awkward, matrix=matrix)
