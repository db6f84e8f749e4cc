"""Models that nobody here made, from ``penstock compile`` to an agent's answer: those that packages on PyPI carry, and
architectures of timm and transformers.

What the compiler says of them is not believed: the variant's bytes and the authors' own are asked by onnxruntime alone.
The whole benchmark of them is ``make bench-compiler``; here are fewer and smaller rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.compiler import real_cases, source_cases
from benchmarks.compiler.case import Case
from benchmarks.environments import NotInstalled
from compiler.artifact import evaluation
from compiler.data import calls
from examples.digits.processes import penstock
from examples.real_models.fetch import Unreachable
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Variant
from penstock.wire.tensors import Array
from tests.processes import AgentProcess, CoreProcess
from tests.shared import kept_directory, one_at_a_time

FEW = {"fit": 8, "tune": 12, "certify": 8, "test": 8}
ASKED = 3
INT8 = 'precisions = ["int8"]\nobjective = "size"\npasses.int8.calibrator = "minmax"'
DYNAMIC = 'precisions = ["int8-dynamic"]\nobjective = "size"'
PRECISIONS = 'precisions = ["fp32", "int8"]\npasses.int8.calibrator = "minmax"'
NO_SEARCH = "restore_operators = false"


@pytest.fixture(scope="module")
def wheels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and rows stay for the next session."""
    return kept_directory(request.config, tmp_path_factory, "real-models")


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[CoreProcess, AgentProcess]]:
    """A core and an agent for all of them."""
    with tempfile.TemporaryDirectory(prefix="pk-", dir="/tmp") as name:
        directory = Path(name)
        core = CoreProcess(directory=directory / "c", config="")
        agent = AgentProcess(directory=directory, device_id="a1", core=core)
        try:
            core.start()
            agent.start()
            yield core, agent
        finally:
            agent.kill()
            core.kill()


def case_of(name: str, wheels: Path, **more: object) -> Case:
    """Make a case; its few tuning rows can show no more than that the smaller form is not broken."""
    fields = {"edge_lines": PRECISIONS, "quality_lines": NO_SEARCH, "shown_drop": 0.6} | more
    try:
        with one_at_a_time(wheels):
            return real_cases.make(
                name, wheels, counts=fields.pop("counts", FEW), size=fields.pop("size", None), **fields
            )
    except Unreachable as error:
        pytest.skip(str(error))


def compiled(case: Case, directory: Path, *arguments: str) -> Layout:
    (directory / "recipe.toml").write_text(case.recipe())
    penstock("compile", directory / "recipe.toml", "-o", directory / "out", *arguments)
    layout = Layout(directory / "out")
    assert layout.verify() == []
    return layout


def asked_alone(model: Path, inputs: Mapping[str, Array], variant: Variant, row: int) -> Array:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found: Array = session.run([variant.spec.score_output], calls.call(inputs, variant.spec.inputs, row=row))[0]
    return found


def check_answers(fleet: tuple[CoreProcess, AgentProcess], layout: Layout, case: Case) -> None:
    """Release what was compiled; the core answers as the authors' model, the device as its variant's bytes."""
    core, agent = fleet
    core.push(layout.root)
    core.release(f"{case.name}:v1")
    agent.wait_until_runs(case.name, "v1")
    edge = layout.artifact().variant("edge")
    inputs = case.rows("test")
    with Client(core.http_url) as cloud, Client(agent.target) as device:
        for row in range(ASKED):
            given = calls.call(inputs, edge.spec.inputs, row=row)
            for client, model, local in (
                (cloud, case.model, False),
                (device, layout.blobs.path(edge.weights.digest), True),
            ):
                parameters = {"local_only": True} if local else {}
                answer = client.infer(case.name, given, parameters=parameters)
                expected = asked_alone(model, inputs, edge, row)
                largest = float(np.abs(expected).max())
                np.testing.assert_allclose(
                    answer.outputs[case.output], expected, atol=edge.spec.golden_tolerance + 1e-3 * largest
                )
                assert not local or answer.parameters["served_by"] == "edge"


def test_a_file_classifier(tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess]) -> None:
    """magika: biases that onnxruntime's quantizer compares as arrays where it wants numbers."""
    case = case_of("magika", wheels, edge_lines=INT8)
    layout = compiled(case, tmp_path, "--without-certificate")
    assert layout.artifact().variant("edge").spec.precision == "int8"
    check_answers(fleet, layout, case)


def test_a_voice_model_with_a_state(tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess]) -> None:
    """silero-vad: the batch of its state is another axis, a number stands beside the rows, and a sigmoid answers."""
    counts = {"fit": 40, "tune": 60, "certify": 200, "test": 8}
    case = case_of("silero-vad", wheels, counts=counts, shown_drop=0.2)
    layout = compiled(case, tmp_path)
    assert {variant.spec.max_batch for variant in layout.artifact().variants} == {1}
    found = evaluation.decode((layout.root / "evaluation.json").read_bytes()).targets[0]
    assert all(line.quality is not None for line in found.candidates), "int8 was made, though it costs too much"
    assert found.chosen == "fp32"
    assert len(layout.certificates()) == 1
    check_answers(fleet, layout, case)
    inputs, edge = case.rows("test"), layout.artifact().variant("edge")
    with Client(fleet[1].target) as device:
        for row in range(ASKED):
            answer = device.infer(case.name, calls.call(inputs, edge.spec.inputs, row=row))
            by_device = answer.parameters["served_by"] == "edge"
            assert answer.parameters["reason"] == ("confident" if by_device else "escalated")
            model = layout.blobs.path(edge.weights.digest) if by_device else case.model
            expected = asked_alone(model, inputs, edge, row)
            np.testing.assert_allclose(answer.outputs[case.output], expected, atol=0.02)


def test_a_classifier_of_lines(tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess]) -> None:
    """PP-OCR's classifier: -1 for every size that is free."""
    case = case_of("ppocr-cls", wheels, edge_lines=INT8)
    layout = compiled(case, tmp_path, "--without-certificate")
    assert layout.artifact().variant("edge").spec.precision == "int8"
    check_answers(fleet, layout, case)


def test_a_reader_of_lines(tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess]) -> None:
    """PP-OCR's recogniser: an output of as many characters as the picture is wide."""
    case = case_of("ppocr-rec", wheels, size={"width": 64}, edge_lines=DYNAMIC)
    check_answers(fleet, compiled(case, tmp_path, "--without-certificate"), case)


@pytest.mark.parametrize(
    ("name", "edge"),
    [("ppocr-det", PRECISIONS), ("nudenet", 'precisions = ["fp32"]')],
)
def test_a_detector(
    name: str, edge: str, tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess]
) -> None:
    """Pictures of any size that is a multiple of 32."""
    case = case_of(name, wheels, size={"side": 64}, edge_lines=edge)
    check_answers(fleet, compiled(case, tmp_path, "--without-certificate"), case)


def test_a_pipeline_of_text_and_numbers(tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess]) -> None:
    """scikit-learn: two columns of categories, one of sentences, two of numbers; a matrix of objects inside."""
    counts = {"train": 300, "fit": 8, "tune": 60, "certify": 200, "test": 8}
    layout, case = compiled_source("topics", wheels, tmp_path, counts=counts)
    assert {variant.spec.max_batch for variant in layout.artifact().variants} == {64}
    check_answers(fleet, layout, case)


def test_a_network_of_timm(
    tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess], toolchain: Callable[[str], str]
) -> None:
    """Its random weights are the recipe author's: the same seed gives the same, and the export answers as torch did."""
    toolchain("torch")
    settings = {"name": "mobilenetv3_small_050"}
    layout, case = compiled_source("timm", wheels, tmp_path, size={"side": 32}, settings=settings, edge_lines=INT8)
    assert layout.artifact().variant("edge").spec.precision == "int8"
    check_answers(fleet, layout, case)


def test_a_model_of_transformers(
    tmp_path: Path, wheels: Path, fleet: tuple[CoreProcess, AgentProcess], toolchain: Callable[[str], str]
) -> None:
    """A BERT as ``save_pretrained`` leaves it, through Optimum."""
    toolchain("optimum")
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    layout, case = compiled_source("bert", wheels, tmp_path, size={"length": 24}, settings=settings, edge_lines=DYNAMIC)
    assert layout.artifact().variant("edge").spec.precision == "int8-dynamic"
    check_answers(fleet, layout, case)


def compiled_source(name: str, wheels: Path, directory: Path, **more: Any) -> tuple[Layout, Case]:
    """Compile what a recipe names; the case's model is what the compiler exported, which it has compared itself."""
    fields = {"edge_lines": PRECISIONS, "quality_lines": NO_SEARCH, "shown_drop": 0.6, "counts": FEW} | more
    try:
        with one_at_a_time(wheels):
            case = source_cases.make(name, wheels, is_exported=False, **fields)
    except NotInstalled as error:
        pytest.skip(str(error))
    layout = compiled(case, directory, "--without-certificate")
    exported = layout.blobs.path(layout.artifact().variant("cloud").weights.digest)
    return layout, replace(case, model=exported)
