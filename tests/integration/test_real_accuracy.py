"""Real accuracy through the whole of ``penstock compile``: what ships is asked again, by onnxruntime alone.

The figures that an artifact carries are not believed here: the variant's bytes are taken out of it and compared with
the float model on the same rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compiler.artifact import evaluation
from compiler.artifact.evaluation import Evaluation
from compiler.measure import gate
from examples.real_models.fetch import Unreachable
from examples.sentence_encoder import fetch
from penstock import Client
from penstock.artifact import golden, manifests
from penstock.artifact.layout import Layout
from penstock.process import machine
from penstock.toolchain import locations
from penstock.toolchain.definitions import find
from tests.compiler import small_models as small
from tests.processes import AgentProcess, CoreProcess

POINT = 0.01
SENTENCES = [
    f"{start} {rest}"
    for start in ("The river", "A train", "My neighbour", "The committee", "An old violin", "This recipe", "The storm")
    for rest in (
        "arrived before sunrise.", "was repaired last winter.", "costs more than it did.", "surprised all of us.",
        "is not what it seems.", "needs a little more salt.", "changed the plan again.", "sounded out of tune.",
        "will be gone by Friday.", "has its own rules.", "made the front page.", "runs through the valley.",
    )
]  # fmt: skip


def compiled(directory: Path, recipe: str) -> tuple[Path, Evaluation]:
    """The edge variant's file, and the figures that the artifact carries."""
    (directory / "recipe.toml").write_text(recipe)
    command = [sys.executable, "-m", "penstock", "compile", "recipe.toml", "-o", "out", "--without-certificate"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    layout = Layout(directory / "out")
    assert layout.verify() == []
    figures = layout.blobs.read(layout.referrers(manifests.EVALUATION)[-1].content.digest)
    return layout.blobs.path(layout.artifact().variant("edge").weights.digest), evaluation.decode(figures)


def one_by_one(model: Path, rows: np.ndarray) -> np.ndarray:
    """Classes of single rows, as a device asks: dynamic int8 rounds the rows of a batch by a common range."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.array([session.run(None, {"x": row[None]})[0].argmax() for row in rows])


def recipe(precisions: list[str], *, budget: float) -> str:
    return f"""
        [model]
        name = "real"
        [edge]
        model = "model.onnx"
        objective = "size"
        precisions = {precisions}
        [data]
        source = "data.npz"
        repeats = "natural"
        [data.splits]
        tune = "tune"
        [quality]
        max_accuracy_drop = {budget}
    """


@pytest.mark.parametrize("raw", [False, True], ids=["standardised", "as measured"])
@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer"])
def test_an_int8_artifact_costs_at_most_a_point_of_real_accuracy(tmp_path: Path, name: str, raw: bool) -> None:
    """Features as measured differ by a factor of a thousand, and break plain int8: operators go back to float.

    The budget is as small as the few tuning rows can show at all: none of them may be answered worse.
    """
    trained = small.mlp(name, raw=raw)
    onnx.save(trained.model, str(tmp_path / "model.onnx"))
    thirds = np.array_split(np.arange(len(trained.test)), 3)
    arrays = {"x_fit": trained.fit, "y_fit": np.zeros(len(trained.fit), np.int64)}
    for use, rows in zip(("tune", "certify", "test"), thirds, strict=True):
        arrays |= {f"x_{use}": trained.test[rows], f"y_{use}": trained.labels[rows]}
    np.savez(tmp_path / "data.npz", **arrays)
    least = gate.levels(0.05, listed=4, restores=True).probe  # what so few rows show if none is answered worse
    budget = next(share for share in np.arange(0.01, 1, 0.01) if len(thirds[0]) >= gate.fewest_rows(share, least))
    if machine.edge_target() == machine.X86:
        budget += 0.02  # without VNNI, weights of 7 bits cost two of them
    model, figures = compiled(tmp_path, recipe(["int8", "int8-dynamic"], budget=budget))
    before = float(np.mean(small.run(trained.model, trained.test).argmax(1) == trained.labels))
    assert before > 0.93
    right = one_by_one(model, trained.test) == trained.labels
    assert before - np.mean(right) <= POINT
    kinds = {node.op_type for node in onnx.load(str(model)).graph.node}
    assert kinds & {"DequantizeLinear", "MatMulInteger", "DynamicQuantizeLinear"}, "int8 ships, not the float model"
    test = thirds[-1]
    carried = figures.targets[0].variant.quality.value
    assert carried == pytest.approx(np.mean(right[test])), "the artifact carries other figures"


@pytest.mark.timeout(900)
def test_a_real_sentence_encoder_keeps_its_neighbours(
    tmp_path: Path,
    toolchain: Callable[[str], str],
    core_factory: Callable[..., CoreProcess],
    agent_factory: Callable[..., AgentProcess],
) -> None:
    """all-MiniLM-L6-v2 from its Hugging Face directory, text in, dynamic int8 out, and an agent's answer."""
    toolchain("optimum")
    try:
        fetch.fetch(tmp_path)
    except Unreachable as error:
        pytest.skip(str(error))
    rows = ["split,text"]
    for number, sentence in enumerate(SENTENCES):
        rows.append(f"{('fit', 'tune', 'certify', 'test')[number % 4]},{sentence}")
    (tmp_path / "text.csv").write_text("\n".join(rows) + "\n")
    model, figures = compiled(
        tmp_path,
        """
        [model]
        name = "encoder"
        task = "embedding"
        [edge]
        model = "minilm"
        precisions = ["int8-dynamic"]
        objective = "size"
        [data]
        source = "text.csv"
        labels = ""
        text = "text"
        splits.column = "split"
        splits.tune = "tune"
        [data.tokenizer]
        file = "minilm/tokenizer.json"
        max_length = 16
        [quality]
        max_accuracy_drop = 0.3
        [certificate]
        harm = "disagreement"
        """,
    )
    (target,) = figures.targets
    assert target.variant.precision == "int8-dynamic"
    assert target.variant.ranking is not None
    assert target.variant.ranking > 0.98
    assert target.variant.quality.value >= 0.85
    assert model.stat().st_size < 0.3 * figures.cloud.size_bytes
    core = core_factory()
    agent = check_agent(core, agent_factory, Layout(tmp_path / "out"))
    check_texts(core, agent, tmp_path / "minilm")


BY_TORCH = """
import json, sys, numpy, torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1]).eval()
found = []
with torch.no_grad():
    for text in json.load(sys.stdin):
        states = model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
        found.append(torch.nn.functional.normalize(states.mean(dim=1), dim=1)[0].tolist())
json.dump(found, sys.stdout)
"""


def by_torch(directory: Path, texts: list[str]) -> np.ndarray:
    """What sentence-transformers' modules of this directory (mean pooling, unit length) give, one text at a time."""
    python = locations.look(find("optimum")).python
    command = [str(python), "-c", BY_TORCH, str(directory)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, timeout=300, check=True)
    return np.array(json.loads(done.stdout))


def check_texts(core: CoreProcess, agent: AgentProcess, directory: Path) -> None:
    """The core's vectors of texts are those of the original; the device's, in integers, are close."""
    openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")
    texts = ["A train.", *SENTENCES[:3], "River " * 60, "naïve café 東京", "x " * 253]
    expected = by_torch(directory, texts)
    for url, least in ((core.http_url, 0.99999), (f"http://{agent.endpoints['tcp']}", 0.95)):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answer = client.embeddings.create(model="encoder", input=texts)
            found = np.array([entry.embedding for entry in answer.data])
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
            assert (found * expected).sum(axis=1).min() > least, (found * expected).sum(axis=1)
            with pytest.raises(openai.BadRequestError, match="257 tokens, and the model takes at most 256"):
                client.embeddings.create(model="encoder", input="x " * 255)
            if url == core.http_url:
                np.testing.assert_allclose(found, expected, atol=1e-5)


def check_agent(core: CoreProcess, agent_factory: Callable[..., AgentProcess], layout: Layout) -> AgentProcess:
    """An agent answers single rows as onnxruntime alone does with the variant's bytes."""
    edge = layout.artifact().variant("edge")
    assert edge.golden is not None
    rows = golden.decode(layout.blobs.read(edge.golden.digest)).inputs
    core.push(layout.root)
    agent = agent_factory(core, arguments=("--tcp", "127.0.0.1:0"))
    core.release(f"{edge.spec.model}:v1")
    agent.wait_until_runs(edge.spec.model, "v1")
    session = ort.InferenceSession(str(layout.blobs.path(edge.weights.digest)), providers=["CPUExecutionProvider"])
    with Client(agent.target) as client:
        for row in range(3):
            given = {name: array[row : row + 1] for name, array in rows.items()}
            answer = client.infer(edge.spec.model, given, parameters={"local_only": True})
            assert answer.parameters["served_by"] == "edge"
            (expected,) = session.run([edge.spec.score_output], given)
            np.testing.assert_allclose(answer.outputs[edge.spec.score_output], expected, atol=1e-4)
    return agent
