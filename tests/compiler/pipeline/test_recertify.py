"""A packed artifact certified on new examples, and its certificates recomputed: through the command that users type."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from compiler.certificate import evidence
from compiler.pipeline import recertify
from compiler.pipeline.new_examples import ExampleSource
from compiler.pipeline.recertify import Request
from penstock.artifact import certificates, golden, manifests
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.cli.main import command, exit_code
from penstock.errors import CalibrationError, ConfigError, InvalidInput, PenstockError
from penstock.process import machine
from penstock.runtime import EngineOptions, load_engine
from tests.factories import linear_model, variant_spec
from tests.language import text_layout

CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)


def model(weight: np.ndarray, path: Path) -> Path:
    """x FP32 [-1, 4] -> logits FP32 [-1, 3]."""
    onnx.save(linear_model(weight.astype(np.float32)), path)
    return path


def draft(path: Path, role: str, target: str, preprocessing: dict[str, Any] | None = None) -> VariantDraft:
    engine = load_engine("onnx", path, EngineOptions())
    x = np.random.default_rng(1).normal(0, 1, (4, 4)).astype(np.float32)
    spec = variant_spec(role, model="blobs", target=target, preprocessing=preprocessing or {"scale": 1})
    return VariantDraft(
        spec=spec, weights=path, golden=golden.encode(Golden(inputs={"x": x}, outputs=engine.run({"x": x})))
    )


def other_target() -> str:
    """One that this machine cannot run."""
    return machine.ARM64 if machine.edge_target() != machine.ARM64 else machine.X86_VNNI


@pytest.fixture
def packed_layout(tmp_path: Path) -> Layout:
    """A sloppy student for any processor, another for a processor that is not this one, a teacher; no certificate."""
    source = np.random.default_rng(7)
    sloppy = model(CENTRES.T * 2 + source.normal(0, 0.9, (4, 3)), tmp_path / "student.onnx")
    layout = Layout.create(tmp_path / "blobs")
    layout.pack(
        [
            draft(sloppy, "edge", machine.ANY),
            draft(model(CENTRES.T, tmp_path / "elsewhere.onnx"), "edge", other_target()),
            draft(model(CENTRES.T * 2, tmp_path / "teacher.onnx"), "cloud", "cpu"),
        ],
        tag="v1",
    )
    return layout


def data(path: Path, seed: int, rows: int, *, splits: bool = False, groups: bool = False) -> Path:
    source = np.random.default_rng(seed)
    labels = source.integers(0, 3, rows)
    arrays: dict[str, Any] = {
        "x": (CENTRES[labels] + source.normal(0, 0.7, (rows, 4))).astype(np.float32),
        "y": labels,
    }
    if groups:
        arrays["site"] = np.where(source.random(rows) < 0.5, "Ulm", "Bonn")
    if splits:
        cuts = {"fit": 50, "tune": 250, "certify": rows - 50, "test": rows}
        bounds = [0, *cuts.values()]
        arrays = {
            f"{name}_{split}": array[low:high]
            for name, array in arrays.items()
            for split, low, high in zip(cuts, bounds, bounds[1:], strict=False)
        }
    np.savez(path, **arrays)
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def run(*arguments: object) -> Result:
    """The command as ``penstock`` runs it, with its exit codes."""
    runner = CliRunner()
    try:
        return runner.invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    except PenstockError as error:
        pytest.fail(f"exit code {exit_code(error)}: {error.message}")


def refusal(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert isinstance(result.exception, PenstockError), result.output
    return exit_code(result.exception), result.exception.message


def edge_of(layout: Layout, target: str = machine.ANY) -> str:
    return layout.artifact().variant("edge", target=target).digest


def certify(layout: Layout, path: Path, *more: object) -> certificates.Certificate:
    run("certify", layout.root, "--data", path, *more)
    found = layout.certificate_for(edge_of(layout))
    assert found is not None
    return found[1]


def test_an_artifact_without_certificate_gets_one_with_its_evidence(packed_layout: Layout, tmp_path: Path) -> None:
    before = packed_layout.digest
    result = run("certify", packed_layout.root, "--data", data(tmp_path / "new.npz", 1, 900))
    assert packed_layout.digest == before
    assert packed_layout.verify() == []
    found = packed_layout.certificate_for(edge_of(packed_layout))
    assert found is not None
    certificate = found[1]
    assert (certificate.serial, certificate.max_harm, certificate.delta) == (1, 0.02, 0.05)
    assert certificate.n == 600  # a third of the rows chose the score
    assert certificate.preprocessing_digest == manifests.preprocessing_digest({"scale": 1})
    (kept,) = packed_layout.referrers(manifests.EVIDENCE)
    assert kept.content.digest == certificate.evidence_digest
    assert certificate.promise() in result.output
    assert found[0] in result.output
    assert "edge/any" in result.output
    assert other_target() not in result.output


def test_figures_are_those_of_the_variants_run_by_hand(packed_layout: Layout, tmp_path: Path) -> None:
    certify(packed_layout, data(tmp_path / "first.npz", 1, 900))
    certificate = certify(packed_layout, data(tmp_path / "new.npz", 2, 700))
    arrays = arrays_of(tmp_path / "new.npz")
    student, teacher = (
        arrays["x"] @ onnx.numpy_helper.to_array(onnx.load(tmp_path / f"{name}.onnx").graph.initializer[0])
        for name in ("student", "teacher")
    )
    from penstock.policy import confidence

    scores = confidence.score(student, kind="logits", name=certificate.score, temperature=certificate.temperature)
    kept = scores >= certificate.threshold
    harmful = kept & (student.argmax(1) != arrays["y"]) & (teacher.argmax(1) == arrays["y"])
    assert (certificate.n, certificate.kept_count, certificate.harm_count) == (700, kept.sum(), harmful.sum())


def test_score_and_temperature_stay_and_older_certificates_do_too(packed_layout: Layout, tmp_path: Path) -> None:
    first = certify(packed_layout, data(tmp_path / "first.npz", 1, 900))
    second = certify(packed_layout, data(tmp_path / "second.npz", 2, 700))
    assert (second.score, second.temperature, second.serial) == (first.score, first.temperature, 2)
    assert second.n == 700  # nothing is chosen, so every row certifies
    assert [one.serial for _, one in packed_layout.certificates()] == [1, 2]
    assert second.data_digest != first.data_digest
    thresholds = [evidence.decode(packed_layout.blobs.read(one.evidence_digest)).thresholds for one in (first, second)]
    assert thresholds[0] == thresholds[1]


def test_choosing_again_takes_a_third_for_it(packed_layout: Layout, tmp_path: Path) -> None:
    certify(packed_layout, data(tmp_path / "first.npz", 1, 900))
    again = certify(packed_layout, data(tmp_path / "second.npz", 2, 900), "--choose-again")
    assert (again.n, again.serial) == (600, 2)


def test_examples_that_belong_together_are_certified_as_clusters_and_recomputed_so(
    packed_layout: Layout, tmp_path: Path
) -> None:
    arrays = arrays_of(data(tmp_path / "plain.npz", 1, 1500))
    patients = np.arange(1500) // 5
    np.savez(tmp_path / "new.npz", **arrays, patient=patients)
    result = run("certify", packed_layout.root, "--data", tmp_path / "new.npz", "--max-harm", "0.05")
    assert "1,500 rows in 300 clusters by 'patient', certified as wholes because of the column's name" in result.output
    assert "certified on 200 clusters of 1000 examples" in result.output
    found = packed_layout.certificate_for(edge_of(packed_layout))
    assert found is not None
    one = found[1]
    assert (one.over, one.cluster_by, one.n, one.rows) == ("clusters", "patient", 200, 1000)
    assert (
        "on average over clusters by 'patient', each counted once"
        in run("artifact", "inspect", packed_layout.root).output
    )
    assert "good" in run("certify", "verify", packed_layout.root).output

    # a promise over clusters stays one, and is refused where there are none; natural rows are draws by themselves
    fresh = data(tmp_path / "fresh.npz", 3, 900)
    assert "no array 'patient'" in refusal("certify", packed_layout.root, "--data", fresh)[1]
    np.savez(tmp_path / "few.npz", **arrays_of(fresh), patient=np.arange(900) // 9)
    code, message = refusal("certify", packed_layout.root, "--data", tmp_path / "few.npz", "--max-harm", "0.02")
    assert code == 3
    assert "100 certifying clusters are too few" in message
    assert "49 more than there are" in message
    rows = certify(packed_layout, tmp_path / "few.npz", "--repeats", "natural", "--max-harm", "0.05")
    assert (rows.over, rows.cluster_by, rows.n, rows.rows) == ("rows", "", 900, 0)


def test_a_source_with_splits_certifies_on_its_own(packed_layout: Layout, tmp_path: Path) -> None:
    assert certify(packed_layout, data(tmp_path / "new.npz", 1, 900, splits=True)).n == 600


def test_levels_groups_delta_and_harm_are_asked_for_and_then_kept(packed_layout: Layout, tmp_path: Path) -> None:
    first = certify(
        packed_layout,
        data(tmp_path / "first.npz", 1, 3000, groups=True),
        *("--max-harm", 0.03, "--max-harm", 0.05, "--max-harm", 0.0001),
        *("--delta", 0.09, "--harm", "disagreement", "--group-by", "site"),
    )
    assert first.max_harms == (0.03, 0.05)
    assert [one.max_harm for one in first.refused] == [0.0001]
    assert (first.harm, first.group_by, first.delta) == ("disagreement", "site", pytest.approx(0.03))
    assert [group.name for group in first.groups] == ["Bonn", "Ulm"]
    second = certify(packed_layout, data(tmp_path / "second.npz", 2, 2000, groups=True))
    assert (second.max_harms, second.harm, second.group_by) == (first.max_harms, first.harm, first.group_by)
    assert second.delta == pytest.approx(first.delta)
    assert second.n == 2000


def test_json_says_it_all(packed_layout: Layout, tmp_path: Path) -> None:
    result = run("certify", packed_layout.root, "--data", data(tmp_path / "new.npz", 1, 900), "-o", "json")
    (variant,) = json.loads(result.stdout)["variants"]
    assert variant["target"] == "any"
    assert variant["certificate"]["levels"][0]["max_harm"] == 0.02
    assert variant["refusal"] == ""
    found = packed_layout.certificate_for(edge_of(packed_layout))
    assert found is not None
    assert variant["digest"] == found[0]


def test_too_few_examples_exit_with_3_and_the_number_and_change_nothing(packed_layout: Layout, tmp_path: Path) -> None:
    certify(packed_layout, data(tmp_path / "first.npz", 1, 900))
    before = (packed_layout.root / "index.json").read_bytes()
    code, message = refusal("certify", packed_layout.root, "--data", data(tmp_path / "new.npz", 2, 100))
    assert code == 3
    assert "edge/any is refused: 100 certifying examples are too few" in message
    assert "149 are needed" in message
    assert (packed_layout.root / "index.json").read_bytes() == before


def test_the_refusal_carries_the_number(packed_layout: Layout, tmp_path: Path) -> None:
    path = data(tmp_path / "new.npz", 2, 100)
    outcomes = recertify.recertify(
        packed_layout.root, Request(source=ExampleSource(data=str(path))), say=lambda text: None
    )
    assert [(one.needed, one.certificate) for one in outcomes] == [(149, None)]


def test_a_variant_for_another_machine_is_not_guessed_at(packed_layout: Layout, tmp_path: Path) -> None:
    path = data(tmp_path / "new.npz", 1, 900)
    code, message = refusal("certify", packed_layout.root, "--data", path, "--target", other_target())
    assert code == 2
    assert f"this machine cannot run {other_target()}" in message
    code, message = refusal("certify", packed_layout.root, "--data", path, "--target", "arm65")
    assert code == 2
    assert "--target: no variant for 'arm65'" in message


def test_a_variant_compiled_elsewhere_is_certified_where_it_runs(
    packed_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact was written on another machine, which could not measure this variant."""
    there = other_target()
    monkeypatch.setattr(machine, "edge_target", lambda: there)
    run("certify", packed_layout.root, "--data", data(tmp_path / "new.npz", 1, 900), "--target", there)
    assert packed_layout.certificate_for(edge_of(packed_layout, there)) is not None
    assert packed_layout.certificate_for(edge_of(packed_layout)) is None


def test_a_variant_that_computes_something_else_here_is_not_certified(packed_layout: Layout, tmp_path: Path) -> None:
    """Its golden outputs are another model's, as when a processor saturates."""
    layout = Layout.create(tmp_path / "wrong")
    honest, wrong = (draft(tmp_path / f"{name}.onnx", "edge", machine.ANY) for name in ("teacher", "student"))
    cloud = draft(tmp_path / "teacher.onnx", "cloud", "cpu")
    layout.pack([VariantDraft(spec=wrong.spec, weights=wrong.weights, golden=honest.golden), cloud], tag="v1")
    code, message = refusal("certify", layout.root, "--data", data(tmp_path / "new.npz", 1, 900))
    assert code == 1
    assert "edge variant for any: golden output 'logits' is off by" in message
    assert layout.certificates() == ()


def test_a_damaged_artifact_is_not_certified(packed_layout: Layout, tmp_path: Path) -> None:
    weights = packed_layout.blobs.path(packed_layout.artifact().variant("cloud").weights.digest)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, message = refusal("certify", packed_layout.root, "--data", data(tmp_path / "new.npz", 1, 900))
    assert code == 1
    assert "does not verify, so nothing was certified" in message


def test_a_model_of_several_files_runs_as_it_is_packed(packed_layout: Layout, tmp_path: Path) -> None:
    directory = tmp_path / "external"
    directory.mkdir()
    onnx.save(
        onnx.load(tmp_path / "student.onnx"),
        directory / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    layout = Layout.create(tmp_path / "several")
    one = draft(directory / "model.onnx", "edge", machine.ANY)
    several = VariantDraft(
        spec=one.spec, weights=one.weights, golden=one.golden, files={"model.onnx.data": directory / "model.onnx.data"}
    )
    layout.pack([several, draft(tmp_path / "teacher.onnx", "cloud", "cpu")], tag="v1")
    assert certify(layout, data(tmp_path / "new.npz", 1, 900)).n == 600


def test_an_interruption_between_evidence_and_certificate_leaves_a_good_artifact(
    packed_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = certify(packed_layout, data(tmp_path / "first.npz", 1, 900))

    def interrupted(self: Layout, certificate: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Layout, "attach_certificate", interrupted)
        CliRunner().invoke(command, ["certify", str(packed_layout.root), "--data", str(tmp_path / "first.npz")])
    assert [one for _, one in packed_layout.certificates()] == [first]
    assert packed_layout.verify() == []
    assert run("certify", "verify", packed_layout.root).exit_code == 0


# --- the examples


def test_a_table_of_a_toml_file_says_where_the_examples_are(packed_layout: Layout, tmp_path: Path) -> None:
    source = np.random.default_rng(3)
    labels = source.integers(0, 3, 600)
    x = CENTRES[labels] + source.normal(0, 0.7, (600, 4))
    lines = [
        "a,b,c,d,species",
        *(",".join(f"{v:.6f}" for v in row) + f",{y}" for row, y in zip(x, labels, strict=True)),
    ]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    (tmp_path / "new.toml").write_text(
        '[data]\nsource = "new.csv"\nlabels = "species"\ncolumns = {x = ["a", "b", "c", "d"]}\n'
    )
    assert certify(packed_layout, tmp_path / "new.toml").n == pytest.approx(400, abs=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model]\n", "no table [data]"),
        ("[data\n", "[data]: "),
        ('[data]\nsource = "x.npz"\nlabel = "y"\n', "unknown field `label`"),
    ],
)
def test_toml_files_that_are_none_are_refused(packed_layout: Layout, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "new.toml").write_text(text)
    code, message = refusal("certify", packed_layout.root, "--data", tmp_path / "new.toml")
    assert code == 2
    assert said in message


def test_harm_by_labels_needs_labels(packed_layout: Layout, tmp_path: Path) -> None:
    path = data(tmp_path / "new.npz", 1, 900)
    np.savez(tmp_path / "bare.npz", x=arrays_of(path)["x"])
    code, message = refusal("certify", packed_layout.root, "--data", tmp_path / "bare.npz")
    assert code == 2
    assert "name them with --labels, or use --harm disagreement" in message
    assert certify(packed_layout, tmp_path / "bare.npz", "--harm", "disagreement").harm == "disagreement"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-harm", 1.5), "certificate.max_harm: 1.5 given"),
        (("--delta", 0.9), "certificate.delta: 0.9 given"),
        (("--group-by", "region"), "region"),
        (("--labels", "answer"), "answer"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    packed_layout: Layout, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    code, message = refusal("certify", packed_layout.root, "--data", data(tmp_path / "new.npz", 1, 900), *arguments)
    assert code == 2
    assert said in message


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    code, message = refusal("certify", tmp_path, "--data", data(tmp_path / "new.npz", 1, 10))
    assert code == 1
    assert "is not an OCI image layout" in message


# --- verify


def problems_of(layout: Layout) -> list[str]:
    result = CliRunner().invoke(command, ["certify", "verify", str(layout.root), "-o", "json"])
    document = json.loads(result.stdout)
    assert result.exit_code == (0 if document["is_good"] else 1)
    return [problem for one in document["certificates"] for problem in one["problems"]]


def test_verify_recomputes_every_certificate(packed_layout: Layout, tmp_path: Path) -> None:
    for seed in (1, 2):
        certify(packed_layout, data(tmp_path / "new.npz", seed, 900))
    result = run("certify", "verify", packed_layout.root)
    assert result.exit_code == 0
    assert result.output.count("every figure recomputed") == 2
    assert result.output.strip().endswith(": good")
    assert problems_of(packed_layout) == []


def test_verify_of_an_artifact_without_certificates_says_so(packed_layout: Layout) -> None:
    result = run("certify", "verify", packed_layout.root)
    assert (result.exit_code, "no certificate" in result.output) == (0, True)


def test_verify_names_a_figure_that_the_evidence_does_not_have(packed_layout: Layout, tmp_path: Path) -> None:
    honest = certify(packed_layout, data(tmp_path / "new.npz", 1, 900))
    level = msgspec.structs.replace(honest.levels[0], threshold=0.01)
    packed_layout.attach_certificate(msgspec.structs.replace(honest, threshold=0.01, levels=(level,), serial=2))
    assert packed_layout.verify() == []  # its bytes are whole, and only its evidence tells
    assert any("threshold: 0.01 certified" in problem for problem in problems_of(packed_layout))
    shown = CliRunner().invoke(command, ["certify", "verify", str(packed_layout.root)])
    assert "NOT as its evidence has it" in shown.output
    assert "1 of 2 certificates do not verify" in shown.output


def test_verify_names_evidence_that_was_changed(packed_layout: Layout, tmp_path: Path) -> None:
    certificate = certify(packed_layout, data(tmp_path / "new.npz", 1, 900))
    path = packed_layout.blobs.path(certificate.evidence_digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-8] + os.urandom(8))
    (problem,) = problems_of(packed_layout)
    assert problem.startswith("its evidence cannot be used: ")
    assert certificate.evidence_digest in problem


def test_verify_names_evidence_that_is_missing(packed_layout: Layout, tmp_path: Path) -> None:
    certificate = certify(packed_layout, data(tmp_path / "new.npz", 1, 900))
    packed_layout.blobs.delete(certificate.evidence_digest)
    assert problems_of(packed_layout) == [f"its evidence {certificate.evidence_digest} is missing from this artifact"]


def test_verify_names_a_certificate_without_evidence(packed_layout: Layout, tmp_path: Path) -> None:
    certificate = certify(packed_layout, data(tmp_path / "new.npz", 1, 900))
    packed_layout.attach_certificate(msgspec.structs.replace(certificate, evidence_digest="", serial=2))
    (problem,) = problems_of(packed_layout)
    assert "it names no evidence" in problem


def test_verify_names_a_document_that_is_no_evidence(packed_layout: Layout, tmp_path: Path) -> None:
    certificate = certify(packed_layout, data(tmp_path / "new.npz", 1, 900))
    wrong = packed_layout.attach(manifests.EVIDENCE, b"\x90", title="evidence.msgpack").content.digest
    packed_layout.attach_certificate(msgspec.structs.replace(certificate, evidence_digest=wrong, serial=2))
    (problem,) = problems_of(packed_layout)
    assert "its evidence cannot be used: evidence: missing columns" in problem


def test_verify_names_digests_that_are_not_this_artifacts(packed_layout: Layout, tmp_path: Path) -> None:
    certificate = certify(packed_layout, data(tmp_path / "new.npz", 1, 900))
    foreign = msgspec.structs.replace(certificate, cloud_digest="sha256:" + "1" * 64)
    packed_layout.attach(manifests.CERTIFICATE, certificates.encode(foreign), title="certificate.json")
    (problem,) = problems_of(packed_layout)
    assert "was issued for other digests (cloud variant: certified sha256:111" in problem


def test_verify_names_a_certificate_that_is_none(packed_layout: Layout) -> None:
    packed_layout.attach(manifests.CERTIFICATE, b'{"schema": 1}', title="certificate.json")
    (problem,) = problems_of(packed_layout)
    assert "certificate: " in problem


@pytest.mark.parametrize("kind", [CalibrationError, ConfigError, InvalidInput])
def test_exit_codes_are_the_tables(kind: type[PenstockError]) -> None:
    assert exit_code(kind("no")) == (3 if kind is CalibrationError else 2)


def test_examples_that_certified_a_variant_do_not_certify_it_again(packed_layout: Layout, tmp_path: Path) -> None:
    """A promise counts for one look: asking for less, or for other levels, of the same examples is another."""
    certify(packed_layout, data(tmp_path / "first.npz", 1, 900))
    certify(packed_layout, data(tmp_path / "new.npz", 2, 700))
    before = packed_layout.index
    code, message = refusal("certify", packed_layout.root, "--data", tmp_path / "new.npz", "--max-harm", "0.05")
    assert code == 3
    assert "certificate 2 of this variant rests on these very examples" in message
    assert packed_layout.index == before


# --- tables ---------------------------------------------------------------------------------------------------------

NAMES = ("alcohol", "ash", "hue", "magnesium")
SHUFFLED = ("hue", "id", "y", "magnesium", "alcohol", "ash")


@pytest.fixture
def table_layout(tmp_path: Path) -> Layout:
    """An artifact that was made with named columns."""
    named = {"columns": {"x": list(NAMES)}}
    layout = Layout.create(tmp_path / "wine")
    student = model(CENTRES.T * 2 + np.random.default_rng(7).normal(0, 0.9, (4, 3)), tmp_path / "student.onnx")
    teacher = model(CENTRES.T * 2, tmp_path / "teacher.onnx")
    layout.pack([draft(student, "edge", machine.ANY, named), draft(teacher, "cloud", "cpu", named)], tag="v1")
    return layout


def table_file(path: Path, order: tuple[str, ...]) -> Path:
    """The same 900 examples, with the columns in another order."""
    arrays = arrays_of(data(path.with_suffix(".npz"), 1, 900))
    columns = {name: arrays["x"][:, place].tolist() for place, name in enumerate(NAMES)}
    columns |= {"y": arrays["y"].tolist(), "id": list(range(900))}
    lines = [",".join(order), *(",".join(repr(columns[name][row]) for name in order) for row in range(900))]
    path.write_text("\n".join(lines) + "\n")
    return path


def figures(layout: Layout, path: Path) -> tuple[int, int, int, float]:
    copy = layout.root.with_name(f"{layout.root.name}-{path.name}")  # examples certify one artifact once
    shutil.copytree(layout.root, copy)
    found = certify(Layout(copy), path)
    return found.n, found.kept_count, found.harm_count, found.threshold


def test_a_table_in_another_order_certifies_the_same(table_layout: Layout, tmp_path: Path) -> None:
    """Also with columns that the model does not know, as a recipe's table, and as a pattern."""
    expected = figures(table_layout, table_file(tmp_path / "plain.csv", (*NAMES, "y")))
    assert figures(table_layout, table_file(tmp_path / "shuffled.csv", SHUFFLED)) == expected
    for number, columns in enumerate(("", 'columns = { x = ["hue", "magnesium", "alcohol", "ash"] }')):
        recipe = tmp_path / f"{number}.toml"
        recipe.write_text(f'[data]\nsource = "shuffled.csv"\n{columns}\n')
        assert figures(table_layout, recipe) == expected


def test_columns_that_are_not_there_are_named(table_layout: Layout, tmp_path: Path) -> None:
    path = table_file(tmp_path / "less.csv", ("hue", "id", "y", "alcohol"))
    code, message = refusal("certify", table_layout.root, "--data", path)
    assert code == 2
    assert "no columns 'ash', 'magnesium'" in message


def test_a_pattern_is_not_matched_by_place(table_layout: Layout, tmp_path: Path) -> None:
    table_file(tmp_path / "shuffled.csv", SHUFFLED)
    recipe = tmp_path / "data.toml"
    recipe.write_text('[data]\nsource = "shuffled.csv"\ncolumns = { x = "*a*" }\n')
    _, message = refusal("certify", table_layout.root, "--data", recipe)
    assert "missing 'hue'" in message
    recipe.write_text('[data]\nsource = "shuffled.csv"\ncolumns = { x = ["*h*", "magnesium"] }\n')
    assert figures(table_layout, recipe) == figures(table_layout, tmp_path / "shuffled.csv")


def test_language_models_are_certified_where_prompts_are(tmp_path: Path) -> None:
    layout = text_layout(tmp_path)
    with pytest.raises(
        InvalidInput, match="holds language models, which are certified on prompts by 'penstock compile'"
    ):
        recertify.recertify(layout.root, Request(source=ExampleSource(data="new.npz")), say=lambda line: None)
