"""Every kind of task from a recipe to an artifact whose decisions a device can repeat: readings, scores, harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from compiler.cache.steps import StepCache, default_root
from compiler.pipeline import compilation, first_recipe, guessed_recipe, recertify
from compiler.pipeline.compilation import Compiled
from compiler.pipeline.new_examples import ExampleSource
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import decoder_of
from penstock.errors import CalibrationError, CompileError, ConfigError, InvalidInput
from penstock.runtime import EngineOptions, load_engine
from tests.factories import onnx_model

Floats = NDArray[np.float64]
CHARACTERS = "_abc"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Ideal outputs of a task, from which inputs, labels and a good and a bad model are made.

    Attributes:
        ideal: (random numbers, rows) to outputs [rows, *shape] and labels.
        noise: how much the bad model heeds four inputs that mean nothing.
    """

    shape: tuple[int, ...]
    ideal: Callable[[np.random.Generator, int], tuple[Floats, NDArray[Any]]]
    noise: float
    settings: str = ""


def boxes(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    corners = source.uniform(0, 10, (rows, 3, 2)) + np.array([[0, 0], [30, 0], [0, 30]])
    sizes, classes = source.uniform(4, 8, (rows, 3, 2)), source.integers(0, 2, (rows, 3, 1)).astype(float)
    sure = np.where(source.random((rows, 3, 1)) < 0.8, source.uniform(0.5, 0.95, (rows, 3, 1)), 0.1)
    labels = np.concatenate([corners, corners + sizes, np.where(sure > 0.25, classes, -1)], axis=2)
    return np.concatenate([corners, corners + sizes, sure, classes], axis=2), labels


def texts(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    steps = source.integers(0, 4, (rows, 5))
    words = []
    for row in steps:
        begins = [at for at, step in enumerate(row) if step and (at == 0 or row[at - 1] != step)]
        words.append("".join(CHARACTERS[row[at]] for at in begins))
    return np.eye(4)[steps] * source.uniform(0.5, 4, (rows, 5, 1)), np.array(words)


def masks(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    classes = source.integers(0, 2, (rows, 3, 3))
    return np.moveaxis(np.eye(2)[classes], 3, 1) * source.uniform(0.3, 3, (rows, 1, 1, 1)), classes


def rankings(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    grades = source.permuted(np.tile(np.arange(5), (rows, 1)), axis=1)
    return grades * source.uniform(0.3, 2, (rows, 1)), grades


def label_sets(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    labels = source.integers(0, 2, (rows, 4))
    return (2 * labels - 1) * source.uniform(0.1, 4, (rows, 4)), labels


def one_column(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    labels = source.integers(0, 2, rows)
    return ((2 * labels - 1) * source.uniform(0.1, 4, rows))[:, None], labels


CASES: Mapping[str, Case] = {
    "detection": Case(shape=(3, 6), ideal=boxes, noise=0.1),
    "ocr": Case(shape=(5, 4), ideal=texts, noise=0.4, settings=f"labels = {list(CHARACTERS)}\ncorrect_at = 0.7"),
    "segmentation": Case(shape=(2, 3, 3), ideal=masks, noise=0.5),
    "ranking": Case(shape=(5,), ideal=rankings, noise=0.7, settings="correct_at = 0.99"),
    "multilabel": Case(shape=(4,), ideal=label_sets, noise=0.5),
    "classification": Case(shape=(1,), ideal=one_column, noise=1.0),
}


def model(weight: Floats, shape: tuple[int, ...], *, sure: bool = False) -> onnx.ModelProto:
    """x FP32 [-1, n] times weights as an output "y" of some shape; "sure" beside it grows with the first number."""
    constants: dict[str, NDArray[Any]] = {"w": weight.astype(np.float32), "shape": np.array([-1, *shape], np.int64)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Reshape", ["z", "shape"], ["y"])]
    outputs: dict[str, list[int | str]] = {"y": ["batch", *shape]}
    if sure:
        constants |= {"start": np.array([0]), "end": np.array([1]), "axis": np.array([1])}
        nodes += [
            helper.make_node("Slice", ["x", "start", "end", "axis"], ["first"]),
            helper.make_node("Sigmoid", ["first"], ["sure"]),
        ]
        outputs["sure"] = ["batch", 1]
    return onnx_model(nodes, constants, inputs={"x": ["batch", len(weight)]}, outputs=outputs)


def write(directory: Path, task: str, case: Case, *, settings: str = "", sure: bool = False) -> Path:
    """Write a recipe with its models and data, and return its path."""
    source = np.random.default_rng(3)
    size = int(np.prod(case.shape))
    for name, noise in (("good", 0.0), ("bad", case.noise)):
        weight = np.concatenate([np.eye(size), source.normal(0, noise, (4, size))])
        onnx.save(model(weight, case.shape, sure=sure), directory / f"{name}.onnx")
    arrays: dict[str, NDArray[Any]] = {}
    for split, rows in {"fit": 120, "certify": 200, "test": 120, "more": 200}.items():
        outputs, labels = case.ideal(source, rows)
        x = np.concatenate([outputs.reshape(rows, -1), source.normal(size=(rows, 4))], axis=1)
        arrays |= {f"x_{split}": x.astype(np.float32), f"y_{split}": labels}
    np.savez(directory / "data.npz", **arrays)
    path = directory / "recipe.toml"
    path.write_text(
        f"""
[model]
name = "m"
task = "{task}"
{case.settings}
{settings}
[edge]
model = "bad.onnx"
precisions = ["fp32"]
objective = "size"
[cloud]
model = "good.onnx"
[data]
source = "data.npz"
[certificate]
max_harm = 0.1
"""
    )
    return path


def compiled(recipe: Path) -> Compiled:
    cache = StepCache(default_root())
    out = recipe.parent / "out"
    return compilation.compile_recipe(recipes.load(recipe), out, cache=cache, watcher=Lines(lambda line: None))


@pytest.mark.parametrize("task", CASES)
def test_what_is_certified_is_what_a_device_computes(task: str, tmp_path: Path) -> None:
    """A device has the artifact alone: its decoder keeps and compares the test rows as the evaluation says."""
    done = compiled(write(tmp_path, task, CASES[task]))
    cascade = done.evaluation.targets[0].cascade
    assert cascade is not None
    assert cascade.certificate is not None
    assert cascade.figures is not None
    layout = Layout(tmp_path / "out")
    x = np.load(tmp_path / "data.npz")["x_test"]
    answered = {}
    for variant in layout.artifact().variants:
        path = layout.blobs.path(variant.weights.digest)
        answered[variant.spec.role] = load_engine("onnx", path, EngineOptions(threads=1)).run({"x": x})
    decoder = decoder_of(layout.artifact().variant("edge").spec)
    one = cascade.certificate
    kept = decoder.score(answered["edge"], name=one.score, temperature=one.temperature) >= one.threshold
    same = decoder.same(decoder.answers(answered["edge"]), decoder.answers(answered["cloud"]))
    assert np.mean(kept) == pytest.approx(cascade.figures.coverage.value)
    assert np.mean(kept & ~same) == pytest.approx(cascade.figures.disagreement.value)
    assert 0 < cascade.figures.coverage.value < 1
    assert cascade.figures.harm.value <= one.max_harm
    assert done.evaluation.cloud.quality.value > done.evaluation.targets[0].variant.quality.value


def test_a_promise_by_a_ready_made_metric_is_made_again_on_new_examples(tmp_path: Path) -> None:
    compiled(write(tmp_path, "ocr", CASES["ocr"]))
    with np.load(tmp_path / "data.npz") as file:
        np.savez(tmp_path / "new.npz", x=file["x_more"], y=file["y_more"])
    request = recertify.Request(source=ExampleSource(data=str(tmp_path / "new.npz"), labels="y"))
    (outcome,) = recertify.recertify(tmp_path / "out", request, say=lambda text: None)
    assert outcome.certificate is not None
    assert (outcome.certificate.serial, outcome.certificate.correct) == (2, "character_accuracy >= 0.7")


FUNCTIONS = """
import numpy as np
import halves

def close(answers, references):
    return 1 - np.minimum(np.abs(answers - references).max(axis=1), 1) * halves.HALF

def right(answers, references):
    return np.abs(answers - references).max(axis=1) < 0.5
"""
OWN = 'metric = "judges.py:close"\ncorrect = "judges.py:right"\nprobe_output = "sure"\n[model.decoding]\nwithin = 0.5\n'


def numbers(source: np.random.Generator, rows: int) -> tuple[Floats, NDArray[Any]]:
    outputs = source.normal(0, 2, (rows, 3))
    return outputs, outputs + source.normal(0, 0.1, (rows, 3))


NUMBERS = Case(shape=(3,), ideal=numbers, noise=0.3)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "judges.py").write_text(FUNCTIONS)
    (tmp_path / "halves.py").write_text("HALF = 0.5\n")
    return write(tmp_path, "regression", NUMBERS, settings=OWN, sure=True)


def test_functions_of_the_author_judge_a_regression_and_its_own_output_says_how_sure_it_is(own: Path) -> None:
    done = compiled(own)
    cascade = done.evaluation.targets[0].cascade
    assert cascade is not None
    assert cascade.certificate is not None
    assert cascade.score == "probe"
    assert isinstance(cascade.certificate.correct, str)
    assert cascade.certificate.correct.startswith("judges.py:right sha256:")
    assert done.evaluation.judged_by["metric"].startswith("judges.py:close sha256:")
    with np.load(own.parent / "data.npz") as file:
        x, y = file["x_test"], file["y_test"]
    assert done.evaluation.cloud.quality.value == pytest.approx(
        np.mean(1 - np.minimum(np.abs(x[:, :3] - y).max(axis=1), 1) / 2), abs=1e-6
    )


def test_a_changed_function_makes_all_of_it_again_also_one_in_a_module_that_it_imports(own: Path) -> None:
    first = compiled(own)
    assert compiled(own).was_kept
    (own.parent / "halves.py").write_text("HALF = 0.25\n")
    again = compiled(own)
    assert not again.was_kept
    assert again.digest == first.digest  # the models are the same
    assert again.evaluation.judged_by != first.evaluation.judged_by


def test_a_promise_by_a_function_of_the_author_is_not_made_again_without_it(own: Path) -> None:
    compiled(own)
    with np.load(own.parent / "data.npz") as file:
        np.savez(own.parent / "new.npz", x=file["x_more"], y=file["y_more"])
    request = recertify.Request(source=ExampleSource(data=str(own.parent / "new.npz"), labels="y"))
    with pytest.raises(CalibrationError, match=r"right by judges\.py:right, which no artifact holds"):
        recertify.recertify(own.parent / "out", request, say=lambda text: None)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return answers + undefined", r"judges\.py:close: judges\.py:6 in close: NameError"),
        ("return answers", r"judges\.py:close: gave shape \[\d+, 3\], expected \[\d+\], a number a row"),
        ("return np.full(len(answers), 1.5)", r"gave 1\.5 for row 0 .*, expected 0 to 1"),
        ("return 'good'", r"gave str, expected one number for each row"),
    ],
)
def test_what_goes_wrong_in_a_function_is_told_in_a_sentence(own: Path, body: str, told: str) -> None:
    path = own.parent / "judges.py"
    lines = path.read_text().splitlines()
    at = next(at for at, line in enumerate(lines) if "HALF" in line)
    path.write_text("\n".join([*lines[:at], f"    {body}", *lines[at + 1 :]]))
    with pytest.raises(InvalidInput, match=told):
        compiled(own)


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ('metric = "maps"', ConfigError, r"model\.metric: no metric 'maps'"),
        ('metric = "map50"', ConfigError, r"map50 is not for task 'segmentation', which has iou"),
        ('metric = "missing.py:f"', InvalidInput, r"model\.metric: .*missing\.py: no such file"),
        ('output = "z"', CompileError, r"no output 'z'; the model has y FP32\[-1, 2, 3, 3\]"),
        ('output_kind = "probabilities"', InvalidInput, r"the values of output 'y' are none \(from"),
    ],
)
def test_a_setting_that_does_not_fit_says_what_would(
    settings: str, error: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        compiled(write(tmp_path, "segmentation", CASES["segmentation"], settings=settings))


def test_labels_of_another_form_say_what_the_task_takes(tmp_path: Path) -> None:
    recipe = write(tmp_path, "segmentation", CASES["segmentation"])
    recipe.write_text(recipe.read_text().replace('task = "segmentation"', 'task = "detection"'))
    with pytest.raises(CompileError, match=r"no output of the model is that.*segmentation"):
        compiled(recipe)
    recipe = write(tmp_path, "detection", CASES["detection"])
    with np.load(tmp_path / "data.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "data.npz", **{name: a[..., :4] if name[0] == "y" else a for name, a in arrays.items()})
    with pytest.raises(InvalidInput, match=r"data\.labels: .*x1, y1, x2, y2, class"):
        compiled(recipe)


def test_names_of_tensorflow_travel_from_the_data_to_the_artifact(tmp_path: Path) -> None:
    recipe = write(tmp_path, "classification", CASES["classification"])
    x, y = "serving_default_x:0", "StatefulPartitionedCall:0"
    for name in ("good.onnx", "bad.onnx"):
        renamed = onnx.load(str(tmp_path / name))
        for node in renamed.graph.node:
            node.input[:] = [x if one == "x" else one for one in node.input]
            node.output[:] = [y if one == "y" else one for one in node.output]
        renamed.graph.input[0].name, renamed.graph.output[0].name = x, y
        onnx.save(renamed, tmp_path / name)
    recipe.write_text(recipe.read_text().replace('"data.npz"', f'"data.npz"\ninputs = {{ "{x}" = "x" }}'))
    compiled(recipe)
    spec = Layout(tmp_path / "out").artifact().variant("edge").spec
    assert (spec.inputs[0].name, spec.score_output) == (x, y)
    text = first_recipe.recipe_for("good.onnx", tmp_path)
    (tmp_path / "first.toml").write_text(text)
    assert recipes.load(tmp_path / "first.toml").model.name == "good"


def test_without_a_recipe_the_guesses_are_those_of_init_and_told_with_their_flags(tmp_path: Path) -> None:
    write(tmp_path, "detection", CASES["detection"])
    said: list[str] = []
    recipe = guessed_recipe.recipe_of_flags(
        "good.onnx",
        tmp_path,
        guessed_recipe.Flags(data=str(tmp_path / "data.npz")),
        cache=StepCache(default_root()),
        watcher=Lines(said.append),
    )
    assert (recipe.model.task, recipe.model.decoding.layout) == ("detection", "rows")
    assert any("task detection: output y is FP32[-1, 3, 6], which looks like boxes (--task)" in line for line in said)
    assert recipe.model.task == recipes.load(_first(tmp_path)).model.task


def _first(directory: Path) -> Path:
    path = directory / "first.toml"
    path.write_text(first_recipe.recipe_for("good.onnx", directory))
    return path
