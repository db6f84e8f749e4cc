"""A learned confidence from training to the packed variant: what ships, what is certified, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.artifact.evaluation import CascadeEvaluation
from compiler.cache.steps import StepCache, default_root
from compiler.certificate import evidence
from compiler.graph.confidence_head import PROBE_OUTPUT
from compiler.pipeline import compilation
from compiler.pipeline.cached_steps import CachedSteps, Model, engine
from compiler.pipeline.compilation import Compiled
from compiler.pipeline.new_examples import ExampleSource
from compiler.pipeline.recertify import Request, recertify
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock.artifact import golden
from penstock.artifact.layout import Layout
from penstock.errors import CalibrationError, CompileError
from penstock.runtime import EngineOptions, load_engine
from tests.factories import onnx_model

CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
EditRecipe = Callable[[str, str], Path]


@pytest.fixture
def overbearing(workspace: Path, make_model: Callable[..., onnx.ModelProto]) -> Path:
    """A student that is surest where it is wrong: a fourth of its input, which means nothing, shouts the last class."""
    weight = CENTRES.T * 2
    weight[3, 2] += 60
    bias = np.array([0, 0, -90], np.float32)
    onnx.save(make_model(weight.astype(np.float32), bias), workspace / "student.onnx")
    source = np.random.default_rng(11)
    arrays = {}
    for split, rows in {"fit": 100, "tune": 500, "certify": 600, "test": 300}.items():
        labels = source.integers(0, 3, rows)
        arrays[f"x_{split}"] = (CENTRES[labels] + source.normal(0, 0.7, (rows, 4))).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(workspace / "data.npz", **arrays)
    recipe = (workspace / "recipe.toml").read_text()
    more = '[data.splits]\ntune = "tune"\n[edge.passes.int8]\nsmooth = 0.0\ncalibrator = "minmax"\n'
    (workspace / "recipe.toml").write_text(f"{recipe}\n{more}")
    return workspace


def compiled(workspace: Path, out: str = "out") -> Compiled:
    recipe = recipes.load(workspace / "recipe.toml")
    watcher = Lines(lambda line: None)
    return compilation.compile_recipe(recipe, workspace / out, cache=StepCache(default_root()), watcher=watcher)


def cascade_of(done: Compiled) -> CascadeEvaluation:
    found = done.evaluation.targets[0].cascade
    assert found is not None
    return found


def check_certified_again(overbearing: Path) -> None:
    """Certify the packed artifact on new examples: by the score it has, and by one chosen again."""
    source = np.random.default_rng(12)
    labels = source.integers(0, 3, 900)
    rows = (CENTRES[labels] + source.normal(0, 0.7, (900, 4))).astype(np.float32)
    np.savez(overbearing / "new.npz", x=rows, y=labels)
    examples = ExampleSource(data=str(overbearing / "new.npz"), labels="y")
    for serial, choose_again in ((2, False), (3, True)):
        if choose_again:
            np.savez(overbearing / "new.npz", x=rows + np.float32(1e-3), y=labels)
        request = Request(source=examples, choose_again=choose_again)
        (outcome,) = recertify(overbearing / "out", request, say=lambda line: None)
        assert outcome.certificate is not None, outcome.refusal
        assert (outcome.certificate.score, outcome.certificate.serial) == ("probe", serial)
        assert outcome.certificate.coverage > 0.4


def test_a_head_that_the_recipe_names_is_part_of_the_variant_certified_and_certified_again(
    overbearing: Path, edit_recipe: EditRecipe
) -> None:
    edit_recipe("max_harm = 0.02", 'max_harm = 0.02\nscore = "probe"')
    done = compiled(overbearing)
    cascade, layout = cascade_of(done), Layout(overbearing / "out")
    assert cascade.certificate is not None
    assert cascade.certificate.score == "probe"
    assert cascade.certificate.coverage > 0.4
    assert cascade.figures is not None
    assert cascade.figures.harm.value <= 0.02
    edge = layout.artifact().variant("edge")
    assert edge.spec.probe == PROBE_OUTPUT
    assert [output.name for output in edge.spec.answers] == ["logits"]
    assert layout.artifact().variant("cloud").spec.probe == ""
    vectors = edge.golden and golden.decode(layout.blobs.read(edge.golden.digest))
    assert vectors
    assert vectors.outputs[PROBE_OUTPUT].shape == (16,)
    # what was certified is what the packed graph says of the certifying rows, one by one as well
    packed = load_engine("onnx", layout.blobs.path(edge.weights.digest), EngineOptions(threads=1))
    with np.load(overbearing / "data.npz") as data:
        alone = [packed.run({"x": row[None]})[PROBE_OUTPUT][0] for row in data["x_certify"]]
    certified = evidence.decode(layout.blobs.read(cascade.certificate.evidence_digest)).data.scores
    np.testing.assert_allclose(np.sort(certified), np.sort(alone), atol=1e-6)
    assert cascade.probe is not None
    assert cascade.probe.ships
    assert (cascade.probe.features, cascade.probe.width) == ("second", 384)
    assert [score.name for score in cascade.scores] == ["probe", "max_prob", "margin", "entropy", "energy"]
    aurocs = [score.auroc or 0 for score in cascade.scores]
    assert max(aurocs) == aurocs[0], "what the others would have done is shown, though the recipe names the head"
    page = (overbearing / "out" / "report.html").read_text()
    assert all(f">{auroc:.3f}<" in page for auroc in aurocs)
    check_certified_again(overbearing)


def test_a_head_that_helps_is_left_out_where_it_costs_too_much_and_the_figures_stay(overbearing: Path) -> None:
    cascade = cascade_of(compiled(overbearing))
    scores = {score.name: score for score in cascade.scores}
    assert cascade.probe is not None
    assert cascade.probe.gain is not None
    assert cascade.probe.gain.low > 0.2
    assert cascade.probe.cost is not None
    assert cascade.probe.cost.low > 0.02  # the whole model takes microseconds
    assert "more than 2%: left out" in cascade.probe.reason
    assert not cascade.probe.ships
    assert set(scores) == {"max_prob", "margin", "entropy", "energy", "probe"}
    assert (scores["probe"].auroc or 0) > (scores["max_prob"].auroc or 1) + 0.1
    assert scores["probe"].curve[0] == (0.0, 0.0)
    assert cascade.score != "probe"
    page = (overbearing / "out" / "report.html").read_text()
    assert f"Learned confidence: not part of this variant; {cascade.probe.reason.replace('+', '&#43;')}"[:60] in page
    assert page.count(f">{scores['probe'].auroc:.3f}<") == 1
    assert Layout(overbearing / "out").artifact().variant("edge").spec.probe == ""


def test_too_few_harmful_rows_are_said_and_refused_where_the_recipe_names_the_head(
    overbearing: Path, edit_recipe: EditRecipe
) -> None:
    with np.load(overbearing / "data.npz") as data:
        arrays = {name: array[:40] if name.endswith("_tune") else array for name, array in data.items()}
    np.savez(overbearing / "data.npz", **arrays)
    cascade = cascade_of(compiled(overbearing))
    assert cascade.probe is not None
    assert not cascade.probe.ships
    assert "of 40 tuning rows are harmful; a head needs 20" in cascade.probe.reason
    assert "probe" not in {score.name for score in cascade.scores}
    edit_recipe("max_harm = 0.02", 'max_harm = 0.02\nscore = "probe"')
    with pytest.raises(CalibrationError, match="of 40 tuning rows are harmful; a head needs 20"):
        compiled(overbearing)


def test_a_head_that_shows_rows_to_change_each_other_is_asked_one_row_at_a_time(
    overbearing: Path, edit_recipe: EditRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed_by(steps: CachedSteps, model: Model, *_: object, **__: object) -> str:
        names = [output.name for output in engine(model.path).outputs]
        return "operator 'scale' mixes rows" if PROBE_OUTPUT in names else ""

    monkeypatch.setattr(CachedSteps, "rows_mixed_by", mixed_by)
    edit_recipe("max_harm = 0.02", 'max_harm = 0.02\nscore = "probe"')
    done = compiled(overbearing)
    edge = Layout(overbearing / "out").artifact().variant("edge")
    assert (edge.spec.probe, edge.spec.max_batch) == (PROBE_OUTPUT, 1)
    assert done.evaluation.targets[0].variant.rows_mixed == "operator 'scale' mixes rows"
    edit_recipe("[quality]", '[quality]\nmixed_rows = "refuse"')
    with pytest.raises(CompileError, match="probe: operator 'scale' mixes rows, and quality.mixed_rows"):
        compiled(overbearing)


def test_a_graph_without_penultimate_features_gets_no_head(overbearing: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('precisions = ["int8"]\nobjective = "size"', 'precisions = ["fp32"]')
    scale = np.array([1, 1, 1], np.float32)
    nodes = [
        helper.make_node("Gather", ["x", "columns"], ["picked"], axis=1),
        helper.make_node("Mul", ["picked", "scale"], ["logits"]),
    ]
    constants = {"columns": np.array([1, 3, 2]), "scale": scale}
    onnx.save(
        onnx_model(nodes, constants, inputs={"x": ["batch", 4]}, outputs={"logits": ["batch", 3]}),
        overbearing / "student.onnx",
    )
    cascade = cascade_of(compiled(overbearing))
    assert cascade.probe is not None
    assert "it has no penultimate features" in cascade.probe.reason
    edit_recipe("max_harm = 0.02", 'max_harm = 0.02\nscore = "probe"')
    with pytest.raises(CompileError, match="it has no penultimate features"):
        compiled(overbearing)


def test_figures_of_an_evaluation_without_scores_are_read() -> None:
    plain = msgspec.to_builtins(CascadeEvaluation(
        harm="labels", score="margin", score_coverage={}, temperature=1.0, certificate=None, refusal="", figures=None,
        curve_certify=(), curve_test=(), reliability=(),
    ))  # fmt: skip
    del plain["scores"], plain["probe"]
    assert msgspec.convert(plain, CascadeEvaluation).scores == ()
