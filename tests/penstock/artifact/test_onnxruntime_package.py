"""The exported package is opened by onnxruntime itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from penstock.artifact import onnxruntime_package
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.cli.main import command
from penstock.errors import ArtifactError, Conflict, DigestMismatch, InvalidInput
from penstock.runtime import onnx_package
from tests.penstock.signed import external_model, make_layout, spec


def test_onnxruntime_opens_it_and_external_data_with_it(tmp_path: Path) -> None:
    layout = make_layout(tmp_path, scale=2.0)
    out = tmp_path / "package"
    onnxruntime_package.export(layout, out)
    info = onnxruntime.ModelPackage.open(str(out)).get_info()
    assert (info["package_name"], info["package_version"], info["layout"]) == ("digits", "v1", "portable")
    assert {component["name"] for component in info["components"]} == {"edge", "cloud"}
    for component, scale in (("edge", 2.0), ("cloud", 3.0)):
        engine = onnx_package.load(out, component)
        assert engine.run({"x": np.ones((1, 4), np.float32)})["logits"].tolist() == [[scale] * 3]
        engine.close()


def test_same_artifact_same_bytes(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    contents = []
    for name in ("one", "two"):
        onnxruntime_package.export(layout, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def layout_of(directory: Path, *specs: VariantSpec) -> Layout:
    made = external_model(directory / "m")
    layout = Layout.create(directory / "l")
    layout.pack([VariantDraft(spec=one, weights=made.weights, files=made.files) for one in specs], tag="v1")
    return layout


def test_variants_that_a_package_cannot_tell_apart_have_to_be_chosen(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, spec("edge", "x86-64-vnni"), spec("edge", "arm64"))
    with pytest.raises(InvalidInput, match="cannot tell edge/x86-64-vnni from edge/arm64.*--variant"):
        onnxruntime_package.export(layout, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    onnxruntime_package.export(layout, tmp_path / "p", ["edge/arm64"])
    manifest = json.loads((tmp_path / "p" / "edge" / "component.json").read_bytes())
    assert list(manifest["variants"]) == ["arm64"]


def test_engines_that_it_cannot_hold_are_left_out_or_refused(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, spec("edge"), spec("edge", "genai-cpu", engine="genai"))
    with pytest.raises(InvalidInput, match="not edge/genai-cpu .genai, cpu."):
        onnxruntime_package.export(layout, tmp_path / "p", ["edge/genai-cpu"])
    with pytest.raises(InvalidInput, match="it has|the artifact has edge/any"):
        onnxruntime_package.export(layout, tmp_path / "p", ["edge/riscv"])
    assert [v.spec.target for v in onnxruntime_package.export(layout, tmp_path / "p")] == ["any"]


def test_nothing_is_written_over_and_nothing_half(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(Conflict, match="not an empty directory"):
        onnxruntime_package.export(layout, out)
    blob = layout.blobs.path(layout.artifact().variant("cloud").files[0].digest)
    blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(DigestMismatch):
        onnxruntime_package.export(layout, tmp_path / "damaged")
    assert sorted(path.name for path in tmp_path.iterdir() if "damaged" in path.name) == []


def test_a_package_that_onnxruntime_does_not_know_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": "1.0", "components": {}, "configs_dir": "x"}')
    with pytest.raises(ArtifactError, match="does not open it"):
        onnx_package.load(tmp_path, "edge")


def test_the_command_compares_golden_outputs(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    arguments = ["artifact", "export", str(layout.root), "--format", "ortpackage", "-o", str(tmp_path / "p")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "edge/any: opened by onnxruntime; golden outputs agree" in result.output
