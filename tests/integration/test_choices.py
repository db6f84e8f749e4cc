"""Answers among options, from a recipe to the sockets of a device and a core: what is certified is what is served.

Real processes, models that were built (examples/codecomplete), and the client of OpenAI.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from compiler.generation import choices
from compiler.generation.built_model import BuiltModel
from compiler.generation.choices import Chosen
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.policy.choices import choice_score
from tests.language import CHOICE_STOP, CLOUD, EDGE, MODELS, choice_rows
from tests.processes import AgentProcess, CoreProcess, penstock

openai = pytest.importorskip("openai", reason="the openai client is not installed: make venv")
httpx = pytest.importorskip("httpx2", reason="what the openai client is built on")

NAME = "pick"
ROWS, ASKED = 800, 12
NEARLY = 1e-3  # of probabilities, which rounding in other company may move
RECIPE = f"""
[model]
name = "{NAME}"
task = "generation"
[edge]
model = "{MODELS / EDGE}"
targets = ["genai-cpu"]
[cloud]
model = "{MODELS / CLOUD}"
[data]
source = "rows.jsonl"
[generation]
stop = {json.dumps(CHOICE_STOP)}
[certificate]
harm = "disagreement"
max_harm = 0.15
score = "margin"
"""


@dataclass(frozen=True)
class Compiled:
    """An artifact, and what its models choose when the compiler asks them."""

    layout: Layout
    rows: list[dict[str, Any]]
    edge: Chosen
    cloud: Chosen


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    directory = tmp_path_factory.mktemp("choices")
    rows = choice_rows(ROWS)
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "recipe.toml").write_text(RECIPE)
    penstock("compile", str(directory / "recipe.toml"), "-o", str(directory / "out"))
    everything = _chosen(EDGE, rows).logprobs
    order = sorted(range(len(rows)), key=lambda at: choice_score(everything[at].tolist(), name="margin"))
    asked = [rows[at] for at in order[:: len(order) // ASKED]]  # from what it is least sure of
    return Compiled(Layout(directory / "out"), asked, _chosen(EDGE, asked), _chosen(CLOUD, asked))


def _chosen(model: str, rows: list[dict[str, Any]]) -> Chosen:
    return choices.chosen(
        BuiltModel(directory=MODELS / model),
        [row["prompt"] for row in rows],
        [row["choices"] for row in rows],
        stop=CHOICE_STOP,
    )


def test_the_artifact_says_that_its_answers_are_options(compiled: Compiled) -> None:
    for variant in compiled.layout.artifact().variants:
        assert variant.spec.answer
        assert variant.spec.answer.is_choice
        assert variant.spec.answer.options == ()  # each request brings its own
    evaluation = json.loads((compiled.layout.root / "evaluation.json").read_text())
    (target,) = evaluation["targets"]
    assert {score["name"] for score in target["cascade"]["scores"]} == {"max_prob", "margin", "entropy"}
    assert target["cascade"]["certificate"]["score"] == "margin"


def test_what_is_certified_is_what_is_served(
    compiled: Compiled, core_factory: Callable[..., CoreProcess], agent_factory: Callable[..., AgentProcess]
) -> None:
    core = core_factory()
    core.push(compiled.layout.root)
    agent = agent_factory(core)
    core.release(f"{NAME}:v1")
    agent.wait_until_runs(NAME, "v1")
    ((digest, certificate),) = compiled.layout.certificates()
    served = set()
    with (
        openai.OpenAI(base_url=f"{core.http_url}/v1", api_key="none", max_retries=0) as by_core,
        openai.OpenAI(
            base_url="http://agent/v1", api_key="none", max_retries=0,
            http_client=httpx.Client(transport=httpx.HTTPTransport(uds=str(agent.socket))),
        ) as by_agent,
    ):  # fmt: skip
        for at, row in enumerate(compiled.rows):
            scores = sorted(compiled.cloud.logprobs[at])
            is_clear = scores[-1] - scores[-2] > NEARLY
            confidence = choice_score(
                compiled.edge.logprobs[at].tolist(), name="margin", temperature=certificate.temperature
            )
            whole = ask(by_core, row)
            assert whole["penstock"]["confidence"] == pytest.approx(
                choice_score(compiled.cloud.logprobs[at].tolist(), name="max_prob"), abs=NEARLY
            )
            if is_clear:
                assert whole["choices"][0]["text"] == compiled.cloud.texts[at]
            turned = row | {"choices": row["choices"][::-1]}
            for found in (ask(by_agent, row), ask(by_agent, turned)):
                account = found["penstock"]
                assert account["confidence"] == pytest.approx(confidence, abs=NEARLY)
                assert (account["threshold"], account["certificate"]) == (certificate.threshold, digest)
                if abs(confidence - certificate.threshold) < NEARLY:
                    continue
                is_kept = confidence >= certificate.threshold
                assert account["served_by"] == ("edge" if is_kept else "cloud")
                assert account["reason"] == ("confident" if is_kept else "escalated")
                expected = compiled.edge if is_kept else compiled.cloud
                if is_kept or is_clear:
                    assert found["choices"][0]["text"] == expected.texts[at]
                assert found["choices"][0]["finish_reason"] == "stop"
                served.add(account["served_by"])
        _check_what_is_outside(by_agent, compiled.rows[0])
        _check_bad_choices((by_core, by_agent), compiled.rows[0])
    assert served == {"edge", "cloud"}
    with Client(f"unix://{agent.socket}") as ours:
        row = compiled.rows[0]
        text = ours.generate(NAME, row["prompt"], choices=row["choices"])
        assert text.text in row["choices"]
        assert (text.finish_reason, text.threshold) == ("stop", certificate.threshold)
    command = [word for text in row["choices"] for word in ("--choice", text)]
    assert penstock("generate", core.http_url, NAME, row["prompt"], *command).stdout.strip() in row["choices"]


def ask(client: Any, row: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Ask for one of the row's options, in vLLM's words."""
    extra = {"structured_outputs": {"choice": row["choices"]}}
    found: dict[str, Any] = client.completions.create(
        model=NAME, prompt=row["prompt"], extra_body=extra, **fields
    ).to_dict()
    return found


def _check_what_is_outside(client: Any, row: dict[str, Any]) -> None:
    for fields in ({"temperature": 1.0}, {"stop": "z"}, {"logprobs": 2}):
        found = ask(client, row, **fields)
        assert (found["penstock"]["served_by"], found["penstock"]["reason"]) == ("cloud", "uncertified")
        assert found["choices"][0]["text"] in row["choices"]  # held to a grammar, as every other model is
    free = client.completions.create(model=NAME, prompt=row["prompt"], max_tokens=3).to_dict()
    assert free["penstock"]["reason"] == "uncertified"


def _check_bad_choices(clients: tuple[Any, Any], row: dict[str, Any]) -> None:
    """Both say the same of what cannot be chosen from."""
    wrong: list[tuple[list[Any], dict[str, Any], str]] = [
        ([], {}, "expected 1 to 1024 strings that are not empty"),
        ([""], {}, "strings that are not empty"),
        (["a", "b", "a"], {}, "structured_outputs: 'a' is there twice"),
        ([f"n{at}" for at in range(1000)], {}, "1000 options; at most 256 are scored"),
        (["a.b", "c"], {}, "at which answers stop"),
        (["unbelievable", "c"], {"max_tokens": 1}, "max_tokens is 1, and the longest of the choices has"),
    ]
    for options, fields, said in wrong:
        for client in clients:
            with pytest.raises(openai.BadRequestError, match=said):
                ask(client, row | {"choices": options}, **fields)
    for client in clients:  # there is nothing to be unsure of
        assert ask(client, row | {"choices": ["only"]})["choices"][0]["text"] == "only"
