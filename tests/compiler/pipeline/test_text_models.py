"""Models that take text, compiled in this process: what is packed, and what is refused with something to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import skl2onnx
from skl2onnx.common.data_types import StringTensorType

from compiler import sources
from compiler.cache.steps import StepCache, default_root
from compiler.pipeline import compilation, guessed_recipe
from compiler.progress import Lines
from compiler.recipe import recipes
from compiler.sources import SourceSection, inspection
from penstock.artifact import golden
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Role
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array
from tests.compiler import text_models
from tests.compiler.text_models import CITIES, SIZES

QUIET = Lines(lambda line: None)


def compiled(directory: Path) -> Layout:
    recipe = recipes.load(directory / "recipe.toml")
    cache = StepCache(default_root(), reuse=True)
    compilation.compile_recipe(recipe, directory / "out", cache=cache, watcher=QUIET)
    return Layout(directory / "out")


def golden_inputs(layout: Layout, role: Role) -> dict[str, Array]:
    vectors = layout.artifact().variant(role).golden
    assert vectors is not None
    return dict(golden.decode(layout.blobs.read(vectors.digest)).inputs)


def test_the_cloud_replays_its_own_words_and_the_edge_its_examples(tmp_path: Path) -> None:
    text_models.make("mixed", tmp_path)
    layout = compiled(tmp_path)
    assert layout.verify() == []
    cloud, edge = golden_inputs(layout, "cloud"), golden_inputs(layout, "edge")
    assert {word.decode() for word in cloud["city"].ravel()} == {*CITIES, "penstock", ""}
    assert {word.decode() for word in edge["city"].ravel()} <= set(CITIES)
    spec = layout.artifact().variant("edge").spec
    assert [(one.name, one.datatype) for one in spec.inputs] == [
        ("city", "BYTES"),
        ("size", "BYTES"),
        ("amounts", "FP32"),
    ]


def test_a_model_that_refuses_unknown_words_is_packed_with_known_ones(tmp_path: Path) -> None:
    text_models.make("strict", tmp_path)
    rows = golden_inputs(compiled(tmp_path), "cloud")["x"]
    assert {word.decode() for word in rows[:, 0]} <= set(CITIES)
    assert {word.decode() for word in rows[:, 1]} <= set(SIZES)


def test_a_locale_that_is_not_here_is_refused_with_one_that_is(tmp_path: Path) -> None:
    text_models.make("foreign locale", tmp_path)
    message = r"cloud.model: .*locale 'tlh_QO.UTF-8'.*locale = \"C.UTF-8\""
    with pytest.raises(CompileError, match=message):
        compiled(tmp_path)


def test_a_zip_map_is_cut_and_its_classes_are_the_labels(tmp_path: Path) -> None:
    """What skl2onnx writes by itself: a label, and probabilities as a list of dictionaries."""
    model = text_models.make("categories", tmp_path)
    types = [("x", StringTensorType([None, 2]))]
    onnx.save(skl2onnx.convert_sklearn(model.estimators["cloud"], "m", types), tmp_path / "zipped.onnx")
    seen = inspection.look(sources.detect("zipped.onnx", tmp_path))
    (probabilities,) = (spec for spec in seen.outputs if spec.name == "output_probability")
    assert (seen.task, seen.output, probabilities.shape[0]) == ("classification", "output_probability", -1)
    assert seen.labels == tuple(str(label) for label in model.estimators["cloud"].classes_)
    (tmp_path / "out").mkdir()
    exported = sources.export(
        sources.detect("zipped.onnx", tmp_path), SourceSection(), tmp_path / "out", progress=lambda share, note: None
    )
    assert exported.facts["labels"] == list(seen.labels)
    loaded = load_engine("onnx", exported.model, EngineOptions())
    x = np.array([["Wien", "S"], ["Bern", "M"]], dtype=object)
    expected = model.estimators["cloud"].predict_proba(x)
    np.testing.assert_allclose(loaded.run({"x": x})["output_probability"], expected, atol=1e-5)


def test_without_a_recipe_the_scores_are_found_beside_the_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_models.make("mixed", tmp_path)
    lines = ["city,size,a,b,y"]
    with np.load(tmp_path / "data.npz") as data:
        parts = (data["city_fit"][:, 0], data["size_fit"][:, 0], *data["amounts_fit"].T, data["y_fit"])
        lines += [",".join(map(str, row)) for row in zip(*parts, strict=True)]
    (tmp_path / "orders.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    cache = StepCache(default_root(), reuse=True)
    flags = guessed_recipe.Flags(data="orders.csv")
    recipe = guessed_recipe.recipe_of_flags("edge.onnx", Path(), flags, cache=cache, watcher=QUIET)
    assert (recipe.model.output, recipe.model.output_kind) == ("probabilities", "auto")
    assert recipe.data.columns == {"amounts": ("a", "b")}
