"""The whole compilation on small real models: what comes out, that it repeats, and what is refused without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.artifact import evaluation
from compiler.artifact.evaluation import CascadeEvaluation, Evaluation
from compiler.cache.steps import StepCache, default_root
from compiler.passes import int8_static
from compiler.pipeline import arrays, compilation, plan
from compiler.pipeline.compilation import Compiled
from compiler.progress import Lines
from compiler.recipe import recipes
from compiler.recipe.choices import Task
from penstock.artifact import golden, manifests, row_reference
from penstock.artifact.layout import Layout
from penstock.errors import CalibrationError, CompileError, Conflict, GateRefused, InvalidInput
from penstock.policy import confidence, distributions, row_features
from penstock.process import machine
from penstock.runtime import EngineOptions, load_engine
from tests.compiler import small_models as small
from tests.factories import onnx_model

CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
EditRecipe = Callable[[str, str], Path]
EditData = Callable[..., None]

pytestmark = pytest.mark.usefixtures("warm")
QUIET = Lines(lambda line: None)


def compile_here(workspace: Path, out: str = "out", *, fresh: bool = False, **options: Any) -> Compiled:
    parsed = recipes.load(workspace / "recipe.toml")
    cache = StepCache(default_root(), reuse=not fresh)
    return compilation.compile_recipe(parsed, workspace / out, cache=cache, watcher=QUIET, **options)


def without_speed(document: Evaluation) -> object:
    """Everything but what a clock says."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            clocked = ("speed", "speedup", "clock_noise")
            return {key: None if key in clocked else strip(item) for key, item in value.items()}
        return [strip(item) for item in value] if isinstance(value, list | tuple) else value

    return strip(msgspec.to_builtins(document))


def cascade_of(document: Evaluation) -> CascadeEvaluation:
    found = document.targets[0].cascade
    assert found is not None
    return found


def files_of(workspace: Path) -> set[str]:
    return {path.name for path in workspace.iterdir()}


def test_the_artifact_is_whole_and_verifies(workspace: Path) -> None:
    done = compile_here(workspace)
    layout = Layout(workspace / "out")
    assert layout.verify() == []
    assert (layout.tag, layout.digest) == ("v1", done.digest)
    parsed = layout.artifact()
    roles = {(v.spec.role, v.spec.target, v.spec.precision) for v in parsed.variants}
    assert roles == {("edge", machine.edge_target(), "int8"), ("cloud", "cpu", "fp32")}
    kinds = {manifests.CERTIFICATE, manifests.EVALUATION, manifests.REPORT, manifests.LOCK, manifests.EVIDENCE}
    kinds |= {manifests.REFERENCE}
    assert {r.kind for r in layout.referrers()} == kinds


def test_every_file_of_an_unchanged_compilation_has_the_same_bytes_and_made_again_all_but_what_a_clock_says(
    workspace: Path,
) -> None:
    def files(name: str) -> dict[str, bytes]:
        root = workspace / name
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    compile_here(workspace)
    assert compile_here(workspace, "again").was_kept
    assert files("again") == files("out")
    compile_here(workspace, "fresh", fresh=True)
    made, before = files("fresh"), files("out")
    named = {path for path in made if "/" not in path and made[path] != before[path]}
    assert named <= {"evaluation.json", "report.html", "index.json"}


def test_copies_for_people_are_the_referrers_bytes(workspace: Path) -> None:
    compile_here(workspace)
    layout = Layout(workspace / "out")
    for kind, name in (
        (manifests.EVALUATION, "evaluation.json"),
        (manifests.REPORT, "report.html"),
        (manifests.LOCK, "lock.json"),
    ):
        (referrer,) = layout.referrers(kind)
        assert layout.blobs.read(referrer.content.digest) == (workspace / "out" / name).read_bytes()
    document = evaluation.decode((workspace / "out" / "evaluation.json").read_bytes())
    assert cascade_of(document).certificate == layout.certificates()[-1][1]


def test_rows_that_are_served_later_can_be_compared_with_those_of_the_test_split(workspace: Path) -> None:
    compile_here(workspace)
    layout = Layout(workspace / "out")
    (referrer,) = layout.referrers(manifests.REFERENCE)
    reference = row_reference.decode(layout.blobs.read(referrer.content.digest))
    with np.load(workspace / "data.npz") as data:
        x = data["x_test"]
    served = row_features.features(
        {"x": x}, {"logits": packed_logits(layout, "cloud", x)}, len(x), max_features=row_reference.MAX_FEATURES
    )
    assert {column.name for column in reference.columns} >= set(served)
    for column in reference.columns:
        if column.name in served:
            assert column.counts == tuple(distributions.binned(column, served[column.name]).tolist()), column.name
    assert {column.rows for column in reference.columns} == {reference.rows} == {len(x)}


def test_the_certificate_is_bound_to_these_variants_and_holds_for_them(workspace: Path) -> None:
    compile_here(workspace)
    layout = Layout(workspace / "out")
    _, certificate = layout.certificates()[-1]
    parsed = layout.artifact()
    manifests.check_certificate(certificate, parsed)
    assert certificate.edge_digest == parsed.variant("edge").digest
    assert (certificate.n, certificate.max_harm, certificate.delta) == (600, 0.02, 0.05)
    # the counts in it are what the packed variants really do to the certifying split
    with np.load(workspace / "data.npz") as data:
        x, y = data["x_certify"], data["y_certify"]
    edge, cloud = (packed_logits(layout, role, x) for role in ("edge", "cloud"))
    kept = (
        confidence.score(edge, kind="logits", name=certificate.score, temperature=certificate.temperature)
        >= certificate.threshold
    )
    harmful = kept & (edge.argmax(1) != y) & (cloud.argmax(1) == y)
    assert (int(kept.sum()), int(harmful.sum())) == (certificate.kept_count, certificate.harm_count)


def packed_logits(layout: Layout, role: manifests.Role, x: np.ndarray) -> np.ndarray:
    weights = layout.blobs.path(layout.artifact().variant(role).weights.digest)
    logits: np.ndarray = load_engine("onnx", weights, EngineOptions()).run({"x": x})["logits"]
    return logits


def test_golden_vectors_replay_on_the_packed_variants(workspace: Path) -> None:
    compile_here(workspace)
    layout = Layout(workspace / "out")
    for variant in layout.artifact().variants:
        assert variant.golden is not None
        vectors = golden.decode(layout.blobs.read(variant.golden.digest))
        engine = load_engine(variant.spec.engine, layout.blobs.path(variant.weights.digest), EngineOptions())
        golden.check(vectors, engine.run(vectors.inputs), tolerance=variant.spec.golden_tolerance)


def test_golden_vectors_catch_another_model(workspace: Path) -> None:
    """The tolerance is not so wide that anything passes: the float teacher is not the quantized student."""
    compile_here(workspace)
    layout = Layout(workspace / "out")
    edge = layout.artifact().variant("edge")
    assert edge.golden is not None
    vectors = golden.decode(layout.blobs.read(edge.golden.digest))
    other = load_engine("onnx", workspace / "teacher.onnx", EngineOptions())
    with pytest.raises(manifests.ArtifactError, match="is off by"):
        golden.check(vectors, other.run(vectors.inputs), tolerance=edge.spec.golden_tolerance)


def test_same_inputs_same_digests(workspace: Path) -> None:
    first, second = compile_here(workspace, "a"), compile_here(workspace, "b", fresh=True)
    assert not second.was_kept
    assert first.digest == second.digest
    assert Layout(workspace / "a").certificates()[-1] == Layout(workspace / "b").certificates()[-1]
    assert (workspace / "a" / "lock.json").read_bytes() == (workspace / "b" / "lock.json").read_bytes()
    assert without_speed(first.evaluation) == without_speed(second.evaluation)


def test_an_unchanged_recipe_is_only_copied(workspace: Path) -> None:
    compile_here(workspace, "a")
    again = compile_here(workspace, "b")
    assert again.was_kept
    assert Layout(workspace / "b").verify() == []
    assert (workspace / "a" / "report.html").read_bytes() == (workspace / "b" / "report.html").read_bytes()


def test_changing_the_promise_keeps_every_candidate(workspace: Path, edit_recipe: EditRecipe) -> None:
    """Only what depends on a change is done again."""
    compile_here(workspace)
    edit_recipe("max_harm = 0.02", "max_harm = 0.03")
    lines: list[str] = []
    parsed = recipes.load(workspace / "recipe.toml")
    compilation.compile_recipe(parsed, workspace / "out", cache=StepCache(default_root()), watcher=Lines(lines.append))
    passes = [line for line in lines if "int8" in line or "fp32" in line or " time" in line]
    assert len(passes) >= 5
    assert all("kept" in line for line in passes)


def test_a_damaged_result_in_the_cache_is_made_again(workspace: Path, cache: Path, edit_recipe: EditRecipe) -> None:
    first = compile_here(workspace, "a")
    for path in cache.rglob("*"):
        if path.is_file() and path.name != "step.json":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    second = compile_here(workspace, "b")
    assert not second.was_kept
    assert (second.digest, Layout(workspace / "b").verify()) == (first.digest, [])


def test_the_tag_moves_no_digest(workspace: Path, edit_recipe: EditRecipe) -> None:
    first = compile_here(workspace, "a")
    edit_recipe('version = "v1"', 'version = "v2"')
    second = compile_here(workspace, "b")
    assert first.digest == second.digest
    assert Layout(workspace / "b").tag == "v2"


def test_versions_with_the_same_cloud_model_share_its_variant(
    workspace: Path, edit_recipe: EditRecipe, edit_data: EditData, make_model: Callable[..., onnx.ModelProto]
) -> None:
    compile_here(workspace, "a")
    with np.load(workspace / "data.npz") as data:
        edit_data(**{name: np.ascontiguousarray(data[name][::-1]) for name in data.files})
    weight = np.random.default_rng(1).normal(0, 0.3, (4, 3)).astype(np.float32)
    weight[:3] += 6 * np.eye(3, dtype=np.float32)
    onnx.save(make_model(weight, np.zeros(3, np.float32)), workspace / "student.onnx")
    edit_recipe('version = "v1"', 'version = "v2"')
    compile_here(workspace, "b")
    a, b = (Layout(workspace / name).artifact() for name in "ab")
    assert a.variant("edge").digest != b.variant("edge").digest
    assert a.variant("cloud").digest == b.variant("cloud").digest


def test_recompiling_replaces_the_artifact(workspace: Path, edit_recipe: EditRecipe) -> None:
    compile_here(workspace)
    before = files_of(workspace)
    edit_recipe('version = "v1"', 'version = "v2"')
    compile_here(workspace)
    assert Layout(workspace / "out").tag == "v2"
    assert Layout(workspace / "out").verify() == []
    assert files_of(workspace) == before


def test_the_figures_are_consistent(workspace: Path) -> None:
    document = compile_here(workspace).evaluation
    (target,) = document.targets
    assert [line.name for line in target.candidates] == ["fp32", "int8 minmax", "int8 percentile", "int8 entropy"]
    (shipped,) = [line for line in target.candidates if line.ships]
    assert shipped.name == target.chosen
    assert shipped.coverage is not None
    assert shipped.coverage.integer_weight_bytes > 0
    assert target.parent_test.quality.value < document.cloud.quality.value
    assert document.cloud.agreement_cloud.value == 1.0
    assert document.splits["ranges"].rows == document.splits["tune"].rows == 100
    cascade = cascade_of(document)
    assert cascade.certificate is not None
    at = [p for p in cascade.curve_certify if p.threshold == cascade.certificate.threshold]
    assert [round(600 * p.coverage) for p in at] == [cascade.certificate.kept_count]
    assert [round(600 * p.harm) for p in at] == [cascade.certificate.harm_count]
    assert sum(bin.rows for bin in cascade.reliability) == document.splits["test"].rows


def test_every_candidate_is_measured_or_says_why_not(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('precisions = ["int8"]', 'precisions = ["fp32", "int8", "int8-dynamic", "fp16"]')
    (target,) = compile_here(workspace).evaluation.targets
    for line in target.candidates:
        if line.quality is None:
            assert "fp16" in line.name
            assert line.verdict
        else:
            assert line.speed is not None
            assert line.speed.memory_bytes >= 0
            assert set(line.speed.p50_ms) == {"1", "32"}


def test_a_target_that_cannot_run_here_is_packed_unmeasured_and_uncertified(
    workspace: Path, edit_recipe: EditRecipe
) -> None:
    elsewhere = "arm64" if machine.edge_target() != "arm64" else "x86-64"
    edit_recipe('targets = ["host"]', f'targets = ["host", "{elsewhere}"]')
    done = compile_here(workspace)
    here, there = done.evaluation.targets
    assert (here.not_measured, there.target) == ("", elsewhere)
    assert "certify it on such a device" in there.not_measured
    assert there.cascade is None
    assert all(line.speed is None for line in there.candidates)
    assert {v.spec.target for v in Layout(workspace / "out").artifact().variants} == {here.target, elsewhere, "cpu"}


def test_a_cascade_of_three_rungs_divides_the_promise(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe("[cloud]", '[[middle]]\nname = "gateway"\nmodel = "teacher.onnx"\nprecisions = ["fp32"]\n[cloud]')
    edit_recipe("max_harm = 0.02", "max_harm = 0.06")
    done = compile_here(workspace)
    promised = [target.cascade.certificate for target in done.evaluation.targets if target.cascade]
    assert [c.max_harm if c else None for c in promised] == [0.03, 0.03]
    assert [c.delta if c else None for c in promised] == [0.025, 0.025]
    roles = [variant.spec.role for variant in Layout(workspace / "out").artifact().variants]
    assert roles == ["edge", "gateway", "cloud"]


def test_smoke_runs_everything_on_few_rows_and_writes_nothing(workspace: Path, tmp_path_factory: object) -> None:
    before = files_of(workspace)
    scratch = workspace / "scratch"
    scratch.mkdir()
    parsed = recipes.load(workspace / "recipe.toml")
    document = compilation.smoke(parsed, scratch, cache=StepCache(default_root()), watcher=QUIET)
    assert {figures.rows for figures in document.splits.values()} == {arrays.SMOKE_ROWS}
    assert [line.name for line in document.targets[0].candidates] == ["fp32", "int8 minmax"]
    assert "too few" in cascade_of(document).refusal
    assert files_of(workspace) == before | {"scratch"}


def test_any_target_ships_the_float_model(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('targets = ["host"]\nprecisions = ["int8"]', 'targets = ["any"]')
    (target,) = compile_here(workspace).evaluation.targets
    assert target.variant.precision == "fp32"
    assert [line.verdict for line in target.candidates] == ["ships"]
    x = np.load(workspace / "data.npz")["x_test"]
    own = load_engine("onnx", workspace / "student.onnx", EngineOptions()).run({"x": x})["logits"]
    np.testing.assert_allclose(packed_logits(Layout(workspace / "out"), "edge", x), own, atol=1e-5)


def test_without_labels_harm_is_disagreement_and_nothing_claims_accuracy(
    workspace: Path, edit_recipe: EditRecipe, edit_data: EditData
) -> None:
    edit_data(y_fit=None, y_certify=None, y_test=None)
    edit_recipe("max_harm = 0.02", 'harm = "disagreement"\nmax_harm = 0.05')
    edit_recipe('source = "data.npz"', 'source = "data.npz"\nlabels = ""')
    document = compile_here(workspace).evaluation
    certificate = cascade_of(document).certificate
    assert certificate is not None
    assert certificate.harm == "disagreement"
    assert certificate.audit_max_harm == 0.05
    assert document.targets[0].metric == "agreement"
    assert cascade_of(document).reliability == ()
    assert document.targets[0].variant.quality == document.targets[0].variant.agreement_cloud


# --- refusals: the reason, and not a trace at the destination


def refused(workspace: Path, kind: type[Exception], match: str, **options: bool) -> None:
    before = files_of(workspace)
    with pytest.raises(kind, match=match):
        compile_here(workspace, **options)
    assert files_of(workspace) == before


def test_too_few_samples(workspace: Path, edit_data: EditData) -> None:
    with np.load(workspace / "data.npz") as data:
        edit_data(x_certify=data["x_certify"][:100], y_certify=data["y_certify"][:100])
    refused(workspace, CalibrationError, "100 certifying examples are too few.*149 are needed")


def test_what_is_too_few_is_said_before_any_candidate_is_made(workspace: Path, edit_data: EditData) -> None:
    """Of 720 certifying rows twelve are different: nothing is calibrated, timed or asked to find that out."""
    with np.load(workspace / "data.npz") as data:
        x, y = (np.repeat(data[f"{name}_certify"][:12], 60, axis=0) for name in ("x", "y"))
    edit_data(x_certify=x, y_certify=y)
    lines: list[str] = []
    recipe = recipes.load(workspace / "recipe.toml")
    with pytest.raises(CalibrationError, match=r"^12 certifying examples are too few.*137 more than") as caught:
        compilation.compile_recipe(
            recipe, workspace / "out", cache=StepCache(default_root(), reuse=False), watcher=Lines(lines.append)
        )
    assert "distinct (one of them 60 times), taken for copies: each distinct one counts once" in caught.value.message
    assert 'data.repeats = "natural"' in caught.value.message
    assert not any("int8" in line or "tune" in line or "certify" in line for line in lines), lines


def test_too_much_harm(workspace: Path, edit_data: EditData) -> None:
    """Every certifying example is one on which the student is wrong and the teacher right, all about equally sure."""
    source = np.random.default_rng(3)
    x = source.normal(0, 2, (4000, 4)).astype(np.float32)
    student, teacher = (
        load_engine("onnx", workspace / f"{name}.onnx", EngineOptions()).run({"x": x})["logits"].argmax(axis=1)
        for name in ("student", "teacher")
    )
    harmful = np.flatnonzero(student != teacher)[0]
    alike = (x[harmful] + source.normal(0, 1e-5, (600, 4))).astype(np.float32)  # not equal: these would be one example
    edit_data(x_certify=alike, y_certify=np.full(600, teacher[harmful]))
    refused(workspace, CalibrationError, "does not show a harm of at most 2 points")


def test_a_refusal_keeps_what_an_earlier_compilation_wrote(workspace: Path, edit_recipe: EditRecipe) -> None:
    digest = compile_here(workspace).digest
    edit_recipe("max_harm = 0.02", "max_harm = 0.001")
    refused(workspace, CalibrationError, "2995 are needed")
    assert Layout(workspace / "out").digest == digest


def test_without_certificate_packs_the_refusal_instead(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe("max_harm = 0.02", "max_harm = 0.001")
    done = compile_here(workspace, require_certificate=False)
    layout = Layout(workspace / "out")
    assert layout.verify() == []
    assert layout.certificates() == ()
    assert "2995 are needed" in cascade_of(done.evaluation).refusal
    assert cascade_of(done.evaluation).figures is None


@pytest.fixture
def absurd_ranges(workspace: Path, edit_recipe: EditRecipe, edit_data: EditData) -> None:
    """Absurd examples stretch the input's range until everything else rounds to a few steps."""
    with np.load(workspace / "data.npz") as data:
        x, y = data["x_fit"], data["y_fit"]
    edit_data(x_tune=x, y_tune=y, x_fit=np.where(np.arange(4) == 3, [[2000.0], [-2000.0]] * 100, x).astype(np.float32))
    edit_recipe("[certificate]", '[data.splits]\ntune = "tune"\n\n[certificate]')


@pytest.mark.usefixtures("absurd_ranges")
def test_quantization_that_costs_too_much(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe("max_accuracy_drop = 0.1", "max_accuracy_drop = 0.1\nrestore_operators = false")
    edit_recipe('precisions = ["int8"]', 'precisions = ["int8"]\npasses.int8.smooth = 0.0')
    refused(
        workspace, GateRefused, r"int8 minmax: costs .* points \(\d+ rows lost and 0 won of 200\), 10.00 points allow"
    )
    refused(workspace, GateRefused, "int8 minmax: costs", require_certificate=False)


def test_when_the_time_budget_is_used_up_the_best_so_far_ships_and_a_later_compilation_goes_on(
    workspace: Path, edit_recipe: EditRecipe
) -> None:
    edit_recipe('precisions = ["int8"]\nobjective = "size"', 'precisions = ["fp32", "int8"]')
    (hurried,) = compile_here(workspace, budget_s=1e-9).evaluation.targets
    assert [line.name for line in hurried.candidates if line.ships] == ["fp32"]
    left_out = [line.verdict for line in hurried.candidates if line.name.startswith("int8")]
    assert len(left_out) == 3
    assert all("not tried: the time budget was used up (--budget)" in verdict for verdict in left_out)
    (whole,) = compile_here(workspace).evaluation.targets
    assert not any("not tried" in line.verdict for line in whole.candidates)


@pytest.mark.usefixtures("absurd_ranges")
def test_operators_go_back_to_float_until_the_budget_is_kept(
    workspace: Path, edit_recipe: EditRecipe, make_model: Callable[..., onnx.ModelProto]
) -> None:
    edit_recipe('precisions = ["int8"]', 'precisions = ["int8"]\npasses.int8 = { calibrator = "minmax", smooth = 0.0 }')
    deaf = 2 * CENTRES.T * [[1], [1], [1], [0]]  # to the absurd input, so that only the first product suffers from it
    onnx.save(make_model(deaf.astype(np.float32), np.zeros(3, np.float32)), workspace / "student.onnx")
    (target,) = compile_here(workspace).evaluation.targets
    (shipped,) = [line for line in target.candidates if line.ships]
    assert shipped.name == "int8, 1 of 2 in float"
    assert shipped.kept_float == (target.sensitivity[0].node,)
    assert shipped.drop is not None
    assert shipped.drop.value <= target.max_drop


def test_other_ranges_are_not_tried_on_a_model_that_cannot_be_quantized(
    workspace: Path, edit_recipe: EditRecipe
) -> None:
    edit_recipe('precisions = ["int8"]\nobjective = "size"', 'precisions = ["int8", "fp32"]')
    student = onnx_model(
        [helper.make_node("Slice", ["x", "from", "to", "axis"], ["logits"], name="first_three")],
        {name: np.array([value]) for name, value in (("from", 0), ("to", 3), ("axis", 1))},
        inputs={"x": ["batch", 4]},
    )
    onnx.save(student, workspace / "student.onnx")
    (target,) = compile_here(workspace).evaluation.targets
    verdicts = {line.name: line.verdict for line in target.candidates}
    assert "there is nothing to quantize" in verdicts.pop("int8 minmax")
    assert verdicts.pop("fp32") == "ships"
    assert set(verdicts) == {"int8 percentile", "int8 entropy"}
    assert set(verdicts.values()) == {"not tried: int8 minmax could not be made, and other ranges do not change that"}


def test_a_model_that_its_author_quantized_is_measured_and_served_as_it_came(
    workspace: Path, edit_recipe: EditRecipe, tmp_path: Path
) -> None:
    edit_recipe('precisions = ["int8"]\nobjective = "size"', "")
    with np.load(workspace / "data.npz") as data:
        job = small.job(tmp_path, onnx.load(str(workspace / "student.onnx")), calibration=data["x_fit"], target="host")
    came = (job.out / int8_static.run(job).model).read_bytes()
    (workspace / "student.onnx").write_bytes(came)
    compiled = compile_here(workspace)
    (target,) = compiled.evaluation.targets
    (line,) = target.candidates
    assert (line.name, line.precision, line.verdict) == ("as it is", "int8", "ships")
    assert line.summary == "quantized already (int8): measured and served as it came"
    layout = Layout(workspace / "out")
    edge, cloud = layout.artifact().variant("edge"), layout.artifact().variant("cloud")
    assert (edge.spec.precision, cloud.spec.precision) == ("int8", "fp32")
    assert layout.blobs.read(edge.weights.digest) == came
    assert cascade_of(compiled.evaluation).certificate is not None


def test_models_that_disagree_on_a_name(workspace: Path, make_model: Callable[..., onnx.ModelProto]) -> None:
    other = make_model(np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32), x="pixels")
    onnx.save(other, workspace / "teacher.onnx")
    refused(workspace, CompileError, r"edge.model and cloud.model disagree on inputs: x FP32\[-1, 4\] and pixels")


def test_models_that_disagree_on_a_shape(workspace: Path, make_model: Callable[..., onnx.ModelProto]) -> None:
    onnx.save(make_model(np.eye(5, 3, dtype=np.float32), np.zeros(3, np.float32)), workspace / "teacher.onnx")
    refused(workspace, CompileError, r"disagree on inputs: x FP32\[-1, 4\] and x FP32\[-1, 5\]")


def test_an_output_that_is_not_there(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('version = "v1"', 'version = "v1"\noutput = "probs"')
    refused(workspace, CompileError, "model.output: no output 'probs'; the model has logits")


def test_label_names_that_do_not_fit(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('version = "v1"', 'version = "v1"\nlabels = ["a", "b"]')
    refused(workspace, CompileError, "model.labels: 2 names, but the model has 3 classes")


def test_a_missing_model(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe("teacher.onnx", "techer.onnx")
    refused(workspace, InvalidInput, r"cloud.model: .*techer.onnx")


def test_a_destination_with_other_things(workspace: Path) -> None:
    (workspace / "out").mkdir()
    (workspace / "out" / "keep.me").write_text("")
    refused(workspace, Conflict, "holds keep.me")


def test_labels_that_are_off_by_one_are_refused_with_the_suspicion(workspace: Path, edit_data: EditData) -> None:
    """Such a cloud is never right, so that nothing can be lost against it: it used to be promised anything."""
    with np.load(workspace / "data.npz") as data:
        edit_data(**{name: (data[name] + 1) % 3 for name in data.files if name.startswith("y_")})
    refused(workspace, CalibrationError, r"better than guessing: right in \d+ of 600.*With classes in another order")


def test_a_cloud_that_is_the_edge_is_certified_and_the_first_words_say_so(
    workspace: Path, edit_recipe: EditRecipe
) -> None:
    edit_recipe('[cloud]\nmodel = "teacher.onnx"\n', "")
    edit_recipe('precisions = ["int8"]', 'precisions = ["fp32"]')
    certificate = cascade_of(compile_here(workspace).evaluation).certificate
    assert certificate is not None
    assert certificate.promise().startswith("edge and cloud agree on all 600 certifying examples")


def test_too_few_tuning_rows_are_refused_before_anything_is_calibrated(
    workspace: Path, edit_recipe: EditRecipe
) -> None:
    edit_recipe("max_accuracy_drop = 0.1", "max_accuracy_drop = 0.02")
    refused(
        workspace,
        GateRefused,
        r'100 tuning rows are too few to show that one of 3 candidates costs at most 2 points: 223 are .*"fp32"',
    )


def test_with_few_tuning_rows_the_original_ships_and_the_others_say_how_many_would_do(
    workspace: Path, edit_recipe: EditRecipe
) -> None:
    edit_recipe("max_accuracy_drop = 0.1", "max_accuracy_drop = 0.02")
    edit_recipe('precisions = ["int8"]', 'precisions = ["fp32", "int8"]\npasses.int8.calibrator = "minmax"')
    (target,) = compile_here(workspace).evaluation.targets
    assert target.chosen == "fp32"
    (int8,) = (line for line in target.candidates if line.name == "int8")
    assert int8.drop is not None
    assert "not shown to keep the budget" in int8.verdict
    assert "rows like these would show it" in int8.verdict
    assert int8.speedup is not None
    assert target.clock_noise is not None
    assert target.clock_noise >= 1


# --- the plan


def test_every_task_has_a_family() -> None:
    assert set(compilation.FAMILIES) == set(get_args(Task))


def test_a_plan_names_every_step_and_writes_nothing(workspace: Path) -> None:
    before = files_of(workspace)
    steps = dict(plan.plan(recipes.load(workspace / "recipe.toml"), workspace / "deep" / "out"))
    target = f"edge/{machine.edge_target()}"
    assert list(steps) == ["edge model", "cloud model", target, "gate", "certify", "pack"]
    assert steps[target] == "candidates int8"
    assert "at least 149 rows" in steps["certify"]
    assert files_of(workspace) == before


def test_what_joined_the_artifact_since_stays_when_it_is_compiled_again(workspace: Path) -> None:
    compile_here(workspace)
    layout = Layout(workspace / "out")
    found = layout.certificates()[-1]
    later = layout.attach_certificate(msgspec.structs.replace(found[1], serial=found[1].serial + 1))
    signed = layout.attach(manifests.SIGNATURE, b"{}", title="signature.json")
    compile_here(workspace)
    again = Layout(workspace / "out")
    assert again.certificates()[-1] == (later.digest, msgspec.structs.replace(found[1], serial=found[1].serial + 1))
    assert [referrer.digest for referrer in again.referrers(manifests.SIGNATURE)] == [signed.digest]
    assert len(again.referrers(manifests.REPORT)) == 1
    assert again.verify() == []


def test_a_model_too_large_to_be_changed_ships_as_it_is(
    workspace: Path, edit_recipe: EditRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler.pipeline.trials.MAX_CHANGED_BYTES", 100)
    edit_recipe('precisions = ["int8"]', 'precisions = ["fp32", "int8"]')
    (target,) = compile_here(workspace, fresh=True).evaluation.targets
    assert [(line.name, line.precision, line.verdict) for line in target.candidates] == [("as it is", "fp32", "ships")]
    edge = Layout(workspace / "out").artifact().variant("edge")
    packed = Layout(workspace / "out").blobs.path(edge.weights.digest).read_bytes()
    assert packed == (workspace / "student.onnx").read_bytes()
