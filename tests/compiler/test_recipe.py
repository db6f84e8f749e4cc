"""A recipe is checked before anything is loaded, and every mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compiler import recipe
from penstock.errors import ConfigError


def test_paths_are_relative_to_the_recipe(workspace: Path) -> None:
    loaded = recipe.load(workspace / "recipe.toml")
    assert loaded.edge_onnx == workspace / "student.onnx"
    assert loaded.npz == workspace / "data.npz"
    assert loaded.reference == "blobs:v1"
    assert loaded.preprocessing == {"scale": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('target = "host"', 'taget = "host"', r"'edge.taget'; did you mean 'target'"),
        ("[certificate]", "[certificat]", "did you mean 'certificate'"),
        ("max_harm = 0.02", "max_harm = 2.0", "certificate.max_harm: 2.0 given, expected a share"),
        ("max_harm = 0.02", 'max_harm = "much"', "certificate.max_harm: expected `float`"),
        ("max_harm = 0.02", "delta = 0.0", "certificate.delta"),
        ("max_harm = 0.02", 'score = "max_porb"', "did you mean 'max_prob'"),
        ("max_harm = 0.02", 'harm = "anger"', "certificate.harm"),
        ('name = "blobs"', 'name = "Blobs!"', "not a model name"),
        ('version = "v1"', 'version = "v 1"', "not a version tag"),
        ('version = "v1"', 'version = "v1"\nmax_batch = 0', "model.max_batch"),
        ('version = "v1"', 'version = "v1"\ninput_range = [1.0, 0.0]', "model.input_range"),
        ('npz = "data.npz"', 'npz = "data.npz"\nlabels = ""', "data.labels: none given"),
        ('onnx = "teacher.onnx"', "", "missing required field `onnx`"),
        ('target = "host"', 'precision = "int3"', "edge.precision"),
    ],
)
def test_mistakes_are_named(edit_recipe: Callable[[str, str], Path], old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe.load(edit_recipe(old, new))


def test_labels_may_be_absent_when_harm_is_disagreement(edit_recipe: Callable[[str, str], Path]) -> None:
    edit_recipe("max_harm = 0.02", 'harm = "disagreement"')
    path = edit_recipe('npz = "data.npz"', 'npz = "data.npz"\nlabels = ""')
    assert recipe.load(path).data.labels == ""


def test_a_missing_recipe_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        recipe.load(tmp_path / "absent.toml")
