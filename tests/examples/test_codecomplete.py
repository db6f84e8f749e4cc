"""Two language models, from a recipe to a certified cascade over sockets, as one command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compiler.generation import built_model
from compiler.generation.built_model import BuiltModel
from compiler.recipe import recipes
from examples.codecomplete import demo, prompts
from examples.tiny_llama import data
from penstock.artifact.layout import Layout
from penstock.policy.text_answers import AnswerSpec
from tests.language import CLOUD, EDGE, MODELS
from tests.pages import DOCS, walk

COMMAND = "penstock demo --example codecomplete"  # as the readme has it
ASKED = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command left, in an environment without any toolchain: the whole path, about ten seconds of work."""
    directory = tmp_path_factory.mktemp("codecomplete")
    penstock, *arguments = COMMAND.split()
    done = subprocess.run(
        [sys.executable, "-m", penstock, *arguments, "--dir", directory, "--json", directory / "figures.json"],
        env={**os.environ, "PENSTOCK_TOOLCHAINS": str(directory / "none")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (directory / "said.txt").write_text(done.stdout)
    return directory


@pytest.fixture(scope="module")
def figures(made: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / "figures.json").read_text())
    return found


def test_the_pair_is_certified_as_it_was_built(made: Path) -> None:
    layout = Layout(made / "artifact")
    assert layout.verify() == []
    for variant in layout.artifact().variants:
        assert (variant.spec.engine, variant.spec.precision) == ("genai", "int4")
        assert isinstance(variant.spec.answer, AnswerSpec)
        assert variant.golden is not None
    evaluation = json.loads((made / "artifact" / "evaluation.json").read_text())
    (target,) = evaluation["targets"]
    assert [line["name"] for line in target["candidates"]] == ["int4"]
    assert "as it was built, in int4" in target["candidates"][0]["summary"]
    drafted = {score["name"]: score["drafted_tokens"] for score in target["cascade"]["scores"]}
    assert drafted["prompt_max_prob"] == 0.0
    assert 0 < drafted["token_min"] < drafted["token_mean"]  # it gives up early
    assert set(evaluation["generation"]["speed"]) == {"edge/genai-cpu", "cloud"}
    steps = json.loads((made / "artifact" / "lock.json").read_text())["steps"]
    asked = [step["key"] for step in steps if step["step"] in ("answers", "perplexity", "golden")]
    assert len(asked) >= 8
    assert all(re.fullmatch(r"onnxruntime [0-9.]+ in slots", key["engine"]) for key in asked)


def test_routes_differ_as_promised(figures: dict[str, Any]) -> None:
    routes, certificate = figures["routes"], figures["certificate"]
    assert set(routes) == {"edge only", "cloud only", "cascade", "drafts"}
    assert (routes["edge only"]["on_device"], routes["edge only"]["bytes_up"]) == (1.0, 0.0)
    assert (routes["cloud only"]["on_device"], routes["cloud only"]["differs"][0]) == (0.0, 0.0)
    cascade = routes["cascade"]
    assert 0 < cascade["on_device"] < 1
    assert 0 < cascade["cloud_tokens"] < routes["cloud only"]["cloud_tokens"]
    assert 0 < cascade["cloud_passes"] < routes["cloud only"]["cloud_passes"]
    assert cascade["bytes_up"] > 0
    assert certificate["max_harm"] == 0.1
    assert cascade["differs"][1] <= certificate["max_harm"]  # the lower end: so few prompts show no more
    assert all(0 < route["first_ms"][0] <= route["first_ms"][1] for route in routes.values())
    assert [claim["text"] for claim in figures["claims"] if not claim["holds"]] == []
    assert len(figures["claims"]) == 3


@pytest.mark.parametrize(("route", "model"), [("edge only", EDGE), ("cloud only", CLOUD)])
def test_what_is_certified_is_what_is_served(route: str, model: str, figures: dict[str, Any]) -> None:
    """The compiler's way to ask says the same words as an agent and a core do over their sockets."""
    recipe = recipes.load(demo.RECIPE)
    rows = [row["prompt"] for row in prompts.held_out()[:ASKED]]
    said = built_model.answers(BuiltModel(directory=MODELS / model), rows, recipe.generation.generate)
    clear = [row for row in range(ASKED) if (said.margins[row] > 1e-3).all()]  # others may change with who else asks
    assert len(clear) > ASKED // 2
    served = figures["answers"][route]
    assert [said.texts[row].strip() for row in clear] == [served[row] for row in clear]


def test_drafts_change_no_answer(figures: dict[str, Any]) -> None:
    drafts, route = figures["drafts"], figures["routes"]["drafts"]
    assert 0 < drafts["accepted"] <= drafts["drafted"]
    assert drafts["passes"] >= figures["asked"]
    assert (route["on_device"], route["differs"][0]) == (0.0, 0.0)
    assert route["cloud_tokens"] == figures["routes"]["cloud only"]["cloud_tokens"]
    assert 1 <= route["cloud_passes"] < figures["routes"]["cloud only"]["cloud_passes"]


def test_what_is_said_is_a_table_with_the_promise(made: Path) -> None:
    said = (made / "said.txt").read_text()
    assert "with 95% confidence, answering locally at token_" in said
    assert all(
        re.search(rf"^{route} ", said, re.MULTILINE) for route in ("edge only", "cloud only", "cascade", "drafts")
    )
    assert "drafted tokens accepted" in said
    assert "Verdict: every claim held" in said


def test_the_page_that_teaches_it_says_what_works(made: Path, short_dir: Path) -> None:
    """Its commands in order; what was compiled above is found in the cache of steps."""
    (short_dir / "examples").symlink_to(DOCS.parent / "examples")
    said = walk(DOCS / "generation.md", short_dir)
    assert '"served_by"' in said
    assert "data: [DONE]" in said


def test_prompts_are_held_out_from_training_and_from_the_certificate() -> None:
    rows, asked = list(prompts.rows()), prompts.held_out()
    assert (len(rows), len(asked)) == (prompts.COMPILED, prompts.ASKED)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in asked}
    held_out = data.texts(held_out=True)
    assert all(any(row["prompt"] + row["answer"] in text for text in held_out) for row in rows[:40])


def test_an_answer_that_came_whole_has_no_gaps() -> None:
    whole = demo.Route(
        differs=(0.0, 0.0, 0.1), right=0.5, loss=(0.0, 0.0, 0.0), on_device=1.0, cloud_tokens=0.0, cloud_passes=0.0,
        first_ms=(1.0, 2.0), gap_ms=float("nan"), bytes_up=0.0,
    )  # fmt: skip
    assert "whole" in demo.table({"edge only": whole})
