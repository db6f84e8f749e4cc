"""Models that take text, from scikit-learn through the compiler to an agent and a core: each answers what it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock, penstock_json
from penstock import Client
from penstock.artifact.layout import Layout
from tests.compiler import text_models
from tests.compiler.text_models import Inputs, TextModel
from tests.processes import AgentProcess, CoreProcess

AT_ONCE = 50


@pytest.mark.parametrize("kind", ["categories", "ordinal", "mixed", "texts", "pickles"])
def test_an_agent_and_a_core_answer_as_scikit_learn_does(
    kind: str,
    tmp_path: Path,
    core_factory: Callable[..., CoreProcess],
    agent_factory: Callable[..., AgentProcess],
) -> None:
    model = text_models.make(kind, tmp_path)
    said = penstock("compile", tmp_path / "recipe.toml", "-o", tmp_path / "out")
    assert ("nothing to quantize" in said.stdout + said.stderr) == (kind != "pickles")  # those are packed as they are
    assert penstock_json("certify", "verify", tmp_path / "out")["is_good"]
    assert {v.spec.max_batch for v in Layout(tmp_path / "out").artifact().variants} == {64}
    core = core_factory()
    core.push(tmp_path / "out")
    agent = agent_factory(core)
    core.release(f"{model.name}:v1")
    agent.wait_until_runs(model.name, "v1")
    for target in (core.grpc_target, core.http_url, agent.target):
        with Client(target) as client:
            for rows in (model.test, model.awkward):
                check(client, model, rows, is_core=target != agent.target)


def check(client: Client, model: TextModel, rows: Inputs, *, is_core: bool) -> None:
    """Ask for all rows, some at once and one by one, and compare with scikit-learn."""
    edge, cloud = (model.expected(role, rows) for role in ("edge", "cloud"))
    count = len(edge)
    sizes = {AT_ONCE, 1} if count < AT_ONCE else {AT_ONCE}
    for size in sizes:
        for start in range(0, count, size):
            some = slice(start, start + size)
            answer = client.infer(model.name, {name: array[some] for name, array in rows.items()})
            given = answer.outputs["probabilities"]
            by_cloud = np.isclose(given, cloud[some], atol=1e-5).all(axis=1)
            by_edge = np.isclose(given, edge[some], atol=1e-5).all(axis=1)
            assert (by_cloud if is_core else by_cloud | by_edge).all(), (start, given, edge[some], cloud[some])
