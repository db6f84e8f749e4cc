"""A model of named columns, from a csv file to an answer: compiled, served by real processes, asked with tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from compiler.cache.steps import StepCache
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock import Client
from penstock.errors import InvalidInput
from tests.compiler.conftest import CENTRES, linear
from tests.processes import AgentProcess, CoreProcess

COLUMNS = ("alcohol", "ash", "hue", "magnesium")
CULTIVARS = ("barolo", "grignolino", "barbera")
RECIPE = """
[model]
name = "wine"
version = "v1"
labels = ["barolo", "grignolino", "barbera"]

[edge]
model = "student.onnx"
targets = ["host"]
precisions = ["fp32"]

[cloud]
model = "teacher.onnx"

[data]
source = "wine.csv"
columns = { x = ["alcohol", "ash", "hue", "magnesium"] }
labels = "cultivar"

[preprocessing]
units = { x = ["% vol", "g/l", "1", "mg/l"], logits = "nat" }

[certificate]
max_harm = 0.05
"""


def examples(rows: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    source = np.random.default_rng(0)
    labels = source.integers(0, 3, rows)
    return (CENTRES[labels] + source.normal(0, 0.7, (rows, 4))).astype(np.float32), labels


def compiled(directory: Path) -> Path:
    """The file has its columns in another order than the model."""
    x, y = examples(1500)
    onnx.save(linear(CENTRES.T, -(CENTRES**2).sum(1) / 2), directory / "teacher.onnx")
    onnx.save(linear(CENTRES.T * 0.9, -(CENTRES**2).sum(1) / 2), directory / "student.onnx")
    lines = ["magnesium,cultivar,hue,alcohol,ash"]
    lines += [f"{row[3]!r},{label},{row[2]!r},{row[0]!r},{row[1]!r}" for row, label in zip(x.tolist(), y, strict=True)]
    (directory / "wine.csv").write_text("\n".join(lines) + "\n")
    (directory / "recipe.toml").write_text(RECIPE)
    compilation.compile_recipe(
        recipes.load(directory / "recipe.toml"),
        directory / "out",
        cache=StepCache(directory / "cache"),
        watcher=Lines(lambda line: None),
    )
    return directory / "out"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent
def test_a_table_in_another_order_gets_the_right_answers_from_every_server(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    core_process.push(compiled(tmp_path))
    agent = agent_factory(core_process, arguments=("--tcp", "127.0.0.1:0"))
    core_process.release("wine:v1")
    agent.wait_until_runs("wine", "v1")
    x, _ = examples(64)
    table = pa.table({name: x[:, place] for place, name in enumerate(COLUMNS)})
    targets = (agent.target, f"grpc://{core_process.grpc_address}", f"http://{core_process.http_address}")
    for target in targets:
        with Client(target) as client:
            assert client.metadata("wine").columns == {"x": COLUMNS}
            assert client.metadata("wine").labels == {"logits": CULTIVARS}
            assert client.metadata("wine").units == {"x": ("% vol", "g/l", "1", "mg/l"), "logits": ("nat",)}
            expected = client.infer("wine", x).outputs["logits"]
            assert (
                expected.argmax(axis=1) != client.infer("wine", x[:, ::-1].copy()).outputs["logits"].argmax(1)
            ).any()
            for order in (COLUMNS, COLUMNS[::-1], ("hue", "alcohol", "magnesium", "ash")):
                answer = client.infer("wine", table.select(order))
                np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-5, atol=1e-5)
            by_column = client.infer(
                "wine", {name: x[:, place].tolist() for place, name in enumerate(COLUMNS)}, labels=True
            )
            np.testing.assert_allclose(by_column.outputs["logits"], expected, rtol=1e-5, atol=1e-5)
            assert by_column.classes == tuple(CULTIVARS[best] for best in expected.argmax(axis=1))
            assert client.infer("wine", x.astype(np.float64)).outputs["logits"].dtype == np.float32
            with pytest.raises(InvalidInput, match=r"it has no 'ash'; the model does not take 'id'"):
                client.infer("wine", table.drop(["ash"]).append_column("id", table["hue"]))
    _check_others(core_process)


def _check_others(core: CoreProcess) -> None:
    """Clients that know nothing of columns read the metadata as before."""
    import tritonclient.grpc
    import tritonclient.http

    with tritonclient.grpc.InferenceServerClient(core.grpc_address) as client:
        (tensor,) = client.get_model_metadata("wine").inputs
        assert (tensor.name, list(tensor.shape)) == ("x", [-1, 4])
    plain = tritonclient.http.InferenceServerClient(core.http_address, network_timeout=10.0)
    try:
        (described,) = plain.get_model_metadata("wine")["inputs"]
        assert (described["name"], described["shape"]) == ("x", [-1, 4])
    finally:
        plain.close()
