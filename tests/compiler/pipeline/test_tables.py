"""Models that were fitted on a table know the names of its columns: examples are matched by them, never by place."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

from compiler.cache.steps import StepCache
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from compiler.recipe.recipes import Recipe
from penstock.artifact.layout import Layout
from penstock.artifact.tensor_names import columns_of
from penstock.errors import CompileError, InvalidInput

NAMES = ("alcohol", "ash", "hue", "magnesium")
CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
MODELS = textwrap.dedent("""
    import numpy as np
    import pyarrow as pa
    from sklearn.linear_model import LogisticRegression

    NAMES = ("alcohol", "ash", "hue", "magnesium")
    CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]])

    def fitted(names):
        source = np.random.default_rng(3)
        labels = source.integers(0, 3, 300)
        x = CENTRES[labels] + source.normal(0, 0.5, (300, 4))
        table = pa.table({name: x[:, place] for place, name in enumerate(NAMES)})
        return LogisticRegression().fit(table.select(names), labels)

    def wine():
        return fitted(NAMES)

    def reversed_wine():
        return fitted(NAMES[::-1])
""")
RECIPE = """
[model]
name = "wine"
version = "v1"
[edge]
model = "models.py:wine"
targets = ["host"]
[edge.source]
framework = "sklearn"
[data]
source = "SOURCE"
COLUMNS
[certificate]
max_harm = 0.05
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Models, and the same examples as a table in another order and as arrays."""
    (tmp_path / "models.py").write_text(MODELS)
    source = np.random.default_rng(0)
    labels = source.integers(0, 3, 900)
    x = (CENTRES[labels] + source.normal(0, 0.5, (900, 4))).astype(np.float32)
    np.savez(tmp_path / "wine.npz", x=x, y=labels)
    columns = {name: x[:, place].tolist() for place, name in enumerate(NAMES)} | {"y": labels.tolist()}
    order = ("hue", "y", "magnesium", "ash", "alcohol")
    lines = [",".join(order), *(",".join(repr(columns[name][row]) for name in order) for row in range(900))]
    (tmp_path / "wine.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def written(workspace: Path, *, source: str = "wine.csv", columns: str = "", cloud: str = "") -> Recipe:
    text = RECIPE.replace("SOURCE", source).replace("COLUMNS", columns)
    if cloud:
        text += f'[cloud]\nmodel = "models.py:{cloud}"\n[cloud.source]\nframework = "sklearn"\n'
    (workspace / "recipe.toml").write_text(text)
    return recipes.load(workspace / "recipe.toml")


def compiled(recipe: Recipe, workspace: Path) -> dict[str, tuple[str, ...]]:
    """Return the columns that the artifact names, once its examples were classified nearly without mistakes."""
    quiet = Lines(lambda line: None)
    done = compilation.compile_recipe(recipe, workspace / "out", cache=StepCache(workspace / "cache"), watcher=quiet)
    (target,) = done.evaluation.targets
    assert target.variant.quality.value > 0.95
    return columns_of(Layout(workspace / "out").artifact().variant("edge").spec)


@pytest.mark.parametrize(
    "columns",
    ["", 'columns = { x = "*a*" }', 'columns = { x = ["hue", "magnesium", "ash", "alcohol"] }'],
    ids=["no columns", "a pattern that gives others", "another order"],
)
def test_a_table_is_read_in_the_order_of_the_model(workspace: Path, columns: str) -> None:
    recipe = written(workspace, columns=columns)
    if "*" in columns:
        with pytest.raises(InvalidInput, match="missing 'hue'"):
            compiled(recipe, workspace)
    else:
        assert compiled(recipe, workspace) == {"x": NAMES}


def test_an_artifact_from_arrays_names_the_columns_that_the_model_knows(workspace: Path) -> None:
    assert compiled(written(workspace, source="wine.npz"), workspace) == {"x": NAMES}


def test_models_of_different_orders_do_not_share_an_input(workspace: Path) -> None:
    with pytest.raises(CompileError, match=r"fitted on different columns for input x, or in another order"):
        compiled(written(workspace, cloud="reversed_wine"), workspace)
