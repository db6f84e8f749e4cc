"""The whole compilation on small real models: what comes out, that it repeats, and what is refused without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from compiler import evaluation, pipeline, recipe
from compiler.candidate import GateRefused
from compiler.evaluation import Evaluation
from compiler.pipeline import Compiled
from penstock import artifact as art
from penstock import confidence, golden, machine
from penstock.errors import CalibrationError, CompileError, Conflict, InvalidInput
from penstock.layout import Layout
from penstock.runtime import EngineOptions, load_engine

EditRecipe = Callable[[str, str], Path]
EditData = Callable[..., None]


def compile_here(workspace: Path, out: str = "out", **options: bool) -> Compiled:
    return pipeline.compile_recipe(
        recipe.load(workspace / "recipe.toml"), workspace / out, say=lambda line: None, **options
    )


def without_latencies(document: Evaluation) -> Evaluation:
    variants = tuple(msgspec.structs.replace(v, latency_p50_ms={}) for v in document.variants)
    return msgspec.structs.replace(document, variants=variants)


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
    assert {r.kind for r in layout.referrers()} == {art.CERTIFICATE, art.EVALUATION, art.REPORT}


def test_copies_for_people_are_the_referrers_bytes(workspace: Path) -> None:
    compile_here(workspace)
    layout = Layout(workspace / "out")
    for kind, name in ((art.EVALUATION, "evaluation.json"), (art.REPORT, "report.html")):
        (referrer,) = layout.referrers(kind)
        assert layout.blobs.read(referrer.content.digest) == (workspace / "out" / name).read_bytes()
    document = evaluation.decode((workspace / "out" / "evaluation.json").read_bytes())
    assert document.certificate == layout.certificate()[1]  # type: ignore[index]


def test_the_certificate_is_bound_to_these_variants_and_holds_for_them(workspace: Path) -> None:
    done = compile_here(workspace)
    layout = Layout(workspace / "out")
    found = layout.certificate()
    assert found is not None
    digest, certificate = found
    parsed = layout.artifact()
    art.check_certificate(certificate, parsed)
    assert digest == done.certificate_digest
    assert certificate.edge_digest == parsed.variant("edge").digest
    assert (certificate.n, certificate.max_harm, certificate.delta) == (600, 0.02, 0.05)
    # the counts in it are what the packed variants really do to the certifying split
    with np.load(workspace / "data.npz") as data:
        x, y = data["x_certify"], data["y_certify"]
    edge, cloud = (packed_logits(layout, role, x) for role in ("edge", "cloud"))
    kept = confidence.score(edge, kind="logits", temperature=certificate.temperature) >= certificate.threshold
    harmful = kept & (edge.argmax(1) != y) & (cloud.argmax(1) == y)
    assert (int(kept.sum()), int(harmful.sum())) == (certificate.kept_count, certificate.harm_count)


def packed_logits(layout: Layout, role: art.Role, x: np.ndarray) -> np.ndarray:
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
    with pytest.raises(art.ArtifactError, match="is off by"):
        golden.check(vectors, other.run(vectors.inputs), tolerance=edge.spec.golden_tolerance)


def test_same_inputs_same_digests(workspace: Path) -> None:
    first, second = compile_here(workspace, "a"), compile_here(workspace, "b")
    assert first.digest == second.digest
    assert first.certificate_digest == second.certificate_digest != ""
    assert without_latencies(first.evaluation) == without_latencies(second.evaluation)


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
    fp32, int8, cloud = document.variants
    assert (fp32.name, int8.name, cloud.name) == ("student fp32", "student int8", "teacher fp32")
    assert fp32.agreement_fp32.value == cloud.agreement_cloud.value == 1.0
    assert fp32.accuracy is not None
    assert cloud.accuracy is not None
    assert fp32.accuracy.value < cloud.accuracy.value
    assert document.quantization is not None
    assert document.quantization.rows == document.splits["ranges"].rows == 100
    assert document.cascade is not None
    assert document.certificate is not None
    at = [p for p in document.curve_certify if p.threshold == document.certificate.threshold]
    assert [round(600 * p.coverage) for p in at] == [document.certificate.kept_count]
    assert [round(600 * p.harm) for p in at] == [document.certificate.harm_count]


def test_fp32_ships_the_students_own_bytes(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('target = "host"', 'target = "any"\nprecision = "fp32"')
    done = compile_here(workspace)
    layout = Layout(workspace / "out")
    edge = layout.artifact().variant("edge", target="any")
    assert layout.blobs.path(edge.weights.digest).read_bytes() == (workspace / "student.onnx").read_bytes()
    assert done.evaluation.quantization is None
    assert len(done.evaluation.variants) == 2


def test_without_labels_harm_is_disagreement_and_nothing_claims_accuracy(
    workspace: Path, edit_recipe: EditRecipe, edit_data: EditData
) -> None:
    edit_data(y_fit=None, y_certify=None, y_test=None)
    edit_recipe("max_harm = 0.02", 'harm = "disagreement"\nmax_harm = 0.05')
    edit_recipe('npz = "data.npz"', 'npz = "data.npz"\nlabels = ""')
    document = compile_here(workspace).evaluation
    assert document.certificate is not None
    assert document.certificate.harm == "disagreement"
    assert document.certificate.audit_max_harm == 0.05
    assert all(v.accuracy is None for v in document.variants)


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


def test_too_much_harm(workspace: Path, edit_data: EditData) -> None:
    source = np.random.default_rng(3)
    x = np.repeat(source.normal(0, 9, (300, 4)).astype(np.float32), 2, axis=0)  # confident, and not at all blobs
    edit_data(x_certify=x, y_certify=source.integers(0, 3, 600))
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
    assert layout.certificate() is None
    assert done.certificate_digest == ""
    assert "2995 are needed" in done.evaluation.refusal
    assert done.evaluation.cascade is None


def test_quantization_that_costs_too_much(workspace: Path, edit_recipe: EditRecipe, edit_data: EditData) -> None:
    """One absurd calibration example stretches the input's range until everything else rounds to a few steps."""
    with np.load(workspace / "data.npz") as data:
        x = data["x_fit"]
    x[:, 3] = np.where(np.arange(200) % 2, 2000, -2000)
    edit_data(x_fit=x)
    refused(workspace, GateRefused, r"int8 costs .* points of accuracy, 2 allowed")
    refused(workspace, GateRefused, "int8 costs", require_certificate=False)


def test_models_that_disagree_on_a_name(workspace: Path, make_model: Callable[..., onnx.ModelProto]) -> None:
    other = make_model(np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32), x="pixels")
    onnx.save(other, workspace / "teacher.onnx")
    refused(workspace, CompileError, r"disagree on inputs: x FP32\[-1, 4\] and pixels FP32\[-1, 4\]")


def test_models_that_disagree_on_a_shape(workspace: Path, make_model: Callable[..., onnx.ModelProto]) -> None:
    onnx.save(make_model(np.eye(5, 3, dtype=np.float32), np.zeros(3, np.float32)), workspace / "teacher.onnx")
    refused(workspace, CompileError, r"disagree on inputs: x FP32\[-1, 4\] and x FP32\[-1, 5\]")


def test_a_fixed_batch(workspace: Path) -> None:
    for name in ("student.onnx", "teacher.onnx"):
        model = onnx.load(str(workspace / name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, workspace / name)
    refused(workspace, CompileError, r"export it with a free first dimension \(the batch\)")


def test_an_output_that_is_not_there(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('version = "v1"', 'version = "v1"\noutput = "probs"')
    refused(workspace, CompileError, "model.output: no output 'probs'; the model has logits")


def test_label_names_that_do_not_fit(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe('version = "v1"', 'version = "v1"\nlabels = ["a", "b"]')
    refused(workspace, CompileError, "model.labels: 2 names, but the model has 3 classes")


def test_a_missing_model(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe("teacher.onnx", "techer.onnx")
    refused(workspace, InvalidInput, r"cloud.onnx: .*techer.onnx: no such file")


def test_a_destination_with_other_things(workspace: Path) -> None:
    (workspace / "out").mkdir()
    (workspace / "out" / "keep.me").write_text("")
    refused(workspace, Conflict, "holds keep.me")


# --- the plan


def test_a_plan_names_every_step_and_writes_nothing(workspace: Path) -> None:
    before = files_of(workspace)
    steps = dict(pipeline.plan(recipe.load(workspace / "recipe.toml"), workspace / "deep" / "out"))
    assert list(steps) == ["load", "quantize", "calibrate", "gate", "certify", "pack"]
    assert "600 rows (149 needed at least)" in steps["certify"]
    assert files_of(workspace) == before


def test_a_plan_says_when_samples_will_be_too_few(workspace: Path, edit_recipe: EditRecipe) -> None:
    edit_recipe("max_harm = 0.02", "max_harm = 0.001")
    steps = dict(pipeline.plan(recipe.load(workspace / "recipe.toml"), workspace / "out"))
    assert "2995 needed at least: TOO FEW" in steps["certify"]
