"""A first recipe: it loads, says what is a guess, and nothing of a model's file becomes a setting."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import helper
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from compiler.certificate.binomial import samples_needed
from compiler.pipeline import first_recipe
from compiler.recipe import recipes
from penstock.errors import InvalidInput
from tests.factories import onnx_model


def onnx_file(path: Path, *, output: str = "logits", shape: tuple[Any, ...] = ("batch", 3)) -> None:
    node = helper.make_node("Identity", ["x"], [output])
    onnx.save(onnx_model([node], inputs={"x": shape}, outputs={output: shape}), str(path))


def hugging_face(path: Path, architecture: str, **config: Any) -> None:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    (path / "model.safetensors").touch()
    (path / "tokenizer.json").write_text("{}")


def loaded(text: str, base: Path) -> recipes.Recipe:
    (base / "recipe.toml").write_text(text)
    return recipes.load(base / "recipe.toml")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    onnx_file(tmp_path / "Small Net.onnx")
    onnx_file(tmp_path / "value.onnx", output="y", shape=("batch", 1))
    hugging_face(tmp_path / "bert", "BertForSequenceClassification", id2label={"0": 'a "quoted"', "1": "b\n"})
    hugging_face(tmp_path / "encoder", "BertModel")
    hugging_face(tmp_path / "llama", "LlamaForCausalLM")
    hugging_face(tmp_path / "t5", "T5ForConditionalGeneration", is_encoder_decoder=True)
    (tmp_path / "f.py").write_text("import torch")
    (tmp_path / "s.py").write_text("import sklearn")
    (tmp_path / "m.joblib").touch()
    (tmp_path / "m.pt2").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("model", "name", "task", "target"),
    [
        ("Small Net.onnx", "small-net", "classification", "host"),
        ("value.onnx", "value", "regression", "host"),
        ("bert", "bert", "classification", "host"),
        ("encoder", "encoder", "embedding", "host"),
        ("llama", "llama", "generation", "genai-cpu"),
        ("t5", "t5", "seq2seq", "host"),
        ("f.py:make", "f", "classification", "host"),
        ("s.py:make", "s", "classification", "host"),
        ("m.joblib", "m", "classification", "host"),
        ("m.pt2", "m", "classification", "host"),
    ],
)
def test_every_kind_of_model_gets_a_recipe_that_loads(
    models: Path, model: str, name: str, task: str, target: str
) -> None:
    text = first_recipe.recipe_for(model, models)
    found = loaded(text, models)
    assert (found.model.name, found.model.task) == (name, task)
    assert found.rungs[0].section.model == model
    assert found.rungs[0].section.targets == (target,)
    assert "\n\n\n" not in text
    assert max(len(line) for line in text.splitlines()) <= 140


def test_labels_survive_odd_characters(models: Path) -> None:
    assert loaded(first_recipe.recipe_for("bert", models), models).model.labels == ('a "quoted"', "b\n")


def test_it_says_what_data_are_needed(models: Path) -> None:
    text = first_recipe.recipe_for("Small Net.onnx", models)
    assert "x_fit, x_certify, x_test: FP32 [rows, 3]" in text
    assert f"needs {samples_needed(0.02, 0.05)} certifying examples" in text
    assert "input  x FP32 [-1, 3]" in text


def test_text_models_name_their_tokenizer(models: Path) -> None:
    found = loaded(first_recipe.recipe_for("bert/", models), models)
    assert found.data.tokenizer.file == "bert/tokenizer.json"
    assert found.data.text == "text"


def test_an_encoder_decoder_is_compared_with_texts(models: Path) -> None:
    found = loaded(first_recipe.recipe_for("t5", models), models)
    assert (found.data.text, found.data.labels) == ("text", "target")
    assert found.data.tokenizer.file == "t5/tokenizer.json"


def test_what_is_asked_for_is_used(models: Path) -> None:
    found = loaded(first_recipe.recipe_for("value.onnx", models, target="arm64", data="rows.parquet"), models)
    assert (found.rungs[0].section.targets, found.data.source) == (("arm64",), "rows.parquet")


def test_the_framework_is_seen_in_the_imports(models: Path) -> None:
    assert loaded(first_recipe.recipe_for("s.py:make", models), models).rungs[0].section.source.framework == "sklearn"
    assert loaded(first_recipe.recipe_for("f.py:make", models), models).rungs[0].section.source.framework == "auto"


def test_a_pickle_is_loaded_only_where_that_is_allowed_and_then_says_what_it_knows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"alcohol": [12.0, 13.0, 14.0, 11.5], "ash": [2.0, 2.5, 2.2, 2.4]})
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        frame, ["barolo", "barbera", "barolo", "barbera"]
    )
    joblib.dump(fitted, tmp_path / "wine.joblib")
    outside = loaded(first_recipe.recipe_for("wine.joblib", tmp_path), tmp_path)
    assert (outside.model.labels, outside.rungs[0].section.source.allow_pickle) == ((), False)
    inside = loaded(first_recipe.recipe_for("wine.joblib", tmp_path, allow_pickle=True), tmp_path)
    assert inside.rungs[0].section.source.allow_pickle
    assert inside.model.labels == ("barbera", "barolo")
    assert inside.data.columns == {"x": ("alcohol", "ash")}


def test_a_name_in_the_model_cannot_become_a_setting(models: Path) -> None:
    """Names in an ONNX file are anybody's text."""
    onnx_file(models / "evil.onnx", output='logits"\n[quality]\nmax_accuracy_drop = 1 #')
    text = first_recipe.recipe_for("evil.onnx", models)
    assert tomllib.loads(text)["quality"]["max_accuracy_drop"] == 0.02
    loaded(text, models)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file or directory"):
        first_recipe.recipe_for("absent.onnx", tmp_path)


def test_a_recipe_elsewhere_names_the_model_from_there(models: Path, tmp_path: Path) -> None:
    """The model's name is the one of whoever typed it, the recipe's paths are the recipe's own."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "small.py").write_text("import sklearn")
    base = tmp_path / "recipes"
    base.mkdir()
    for model, named in {
        "value.onnx": "../value.onnx",
        "s.py:make": "../s.py:make",
        "nets.small:make": "../nets/small.py:make",
        str(tmp_path / "value.onnx"): str(tmp_path / "value.onnx"),
    }.items():
        assert first_recipe.relocated(model, tmp_path, base) == named
        text = first_recipe.recipe_for(named, base)
        assert loaded(text, base).rungs[0].section.model == named
    assert first_recipe.relocated("value.onnx", tmp_path, tmp_path) == "value.onnx"


@pytest.mark.parametrize(
    ("shape", "task", "more"),
    [
        (("batch", 300, 6), "detection", 'layout = "rows"'),
        (("batch", 3, 8, 8), "segmentation", "a class for each pixel"),
        (("batch", 3), "classification", '# output_kind = "auto"'),
    ],
)
def test_other_tasks_get_a_recipe_that_loads_and_says_what_labels_are(
    tmp_path: Path, shape: tuple[Any, ...], task: str, more: str
) -> None:
    onnx_file(tmp_path / "m.onnx", output="y", shape=shape)
    text = first_recipe.recipe_for("m.onnx", tmp_path)
    assert loaded(text, tmp_path).model.task == task
    assert more in text
    assert "max_harm" in text


def test_rows_that_repeat_or_belong_together_are_seen_and_said(models: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (40, 3)).astype(np.float32)
    np.savez(models / "copied.npz", x=np.repeat(x, 5, axis=0), y=np.zeros(200, np.int64))
    np.savez(models / "owned.npz", x=x, y=np.zeros(40, np.int64), patient_id=np.arange(40) // 4)
    np.savez(models / "plain.npz", x=x, y=np.zeros(40, np.int64))
    text = first_recipe.recipe_for("Small Net.onnx", models, data="copied.npz")
    assert "# 200 rows, 40 distinct (one of them 5 times)" in text
    assert loaded(text, models).data.repeats == "copies"
    text = first_recipe.recipe_for("Small Net.onnx", models, data="owned.npz")
    assert "# 40 rows in 10 clusters; the promise is then over these" in text
    assert loaded(text, models).data.cluster_by == "patient_id"
    for data in ("plain.npz", "absent.npz"):
        text = first_recipe.recipe_for("Small Net.onnx", models, data=data)
        assert '# repeats = "natural"' in text
        assert '# cluster_by = "patient"' in text
        found = loaded(text, models).data
        assert (found.repeats, found.cluster_by) == ("", "")


def test_sizes_that_are_open_and_a_state_on_another_axis_are_shown(tmp_path: Path) -> None:
    model = onnx_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": ["n", 3, "h", "w"], "state": [2, "n", 8]},
        outputs={"y": ["n", 3, "h", "w"]},
    )
    onnx.save(model, tmp_path / "m.onnx")
    text = first_recipe.recipe_for("m.onnx", tmp_path)
    assert '# shapes = { "x" = [-1, 3, -1, -1] }' in text
    assert "x_fit, x_certify, x_test: FP32 [rows, 3, -1, -1]" in text
    assert "state_fit, state_certify, state_test: FP32 [rows, 2, -1, 8]" in text
