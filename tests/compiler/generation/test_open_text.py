"""``penstock compile`` with a metric of one's own: open text is certified in its opinion, and says so everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from compiler.artifact import evaluation as evaluations
from compiler.cache.steps import StepCache
from compiler.certificate import evidence
from compiler.commands import certify
from compiler.generation import grading
from compiler.generation.prompts import Prompt, PromptSet
from compiler.pipeline import compilation, plan
from compiler.pipeline.compilation import Compiled
from compiler.progress import Lines
from compiler.recipe import recipes
from edge_agent import cli as agent_cli
from examples.codecomplete import prompts as places
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.cli import artifact
from penstock.errors import CalibrationError, ConfigError, InvalidInput, PenstockError
from penstock.hosting.generation.text_metric import TextMetric
from tests.language import MODELS, NAME
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess
from tests.waiting import wait_until

EXAMPLE = MODELS.parent
SCORE = (EXAMPLE / "score.py").read_text()
RECIPE = (
    (EXAMPLE / "open_text.toml")
    .read_text()
    .replace('"prompts.py:rows"', '"prompts.jsonl"')
    .replace("max_harm = 0.1 ", 'score = "token_min"\nmax_harm = [0.5, 0.001] ')
)
USES = {"tune": 30, "certify": 90, "test": 20}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("open_text")
    (found / "models").symlink_to(MODELS)
    (found / "score.py").write_text(SCORE)
    uses = [use for use, count in USES.items() for _ in range(count)]
    rows = [row | {"split": use} for row, use in zip(places.rows(), uses, strict=False)]
    (found / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def compile_in(directory: Path, text: str = RECIPE, *, out: str = "out") -> Compiled:
    (directory / "recipe.toml").write_text(text)
    recipe = recipes.load(directory / "recipe.toml")
    return compilation.compile_recipe(
        recipe, directory / out, cache=StepCache(directory / "cache"), watcher=Lines(lambda line: None)
    )


@pytest.fixture(scope="module")
def compiled(directory: Path) -> Compiled:
    return compile_in(directory)


@pytest.fixture(scope="module")
def by_answers(directory: Path, compiled: Compiled) -> Compiled:
    """Models are asked once: the steps of the first compilation are kept."""
    return compile_in(directory, RECIPE.replace('harm = "disagreement"', 'harm = "labels"'), out="by_answers")


def cli(command: click.Command, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def held(compiled: Compiled) -> Any:
    layout = Layout(compiled.directory)
    ((_, certificate),) = layout.certificates()
    return certificate, evidence.decode(layout.blobs.read(certificate.evidence_digest)).data


def test_a_certificate_is_about_the_metrics_opinion(compiled: Compiled) -> None:
    certificate, data = held(compiled)
    assert (certificate.opinion.metric, certificate.test, certificate.harm) == (
        "score.py:overlap",
        "betting",
        "disagreement",
    )
    assert certificate.max_harms == (0.5,)
    assert [one.max_harm for one in certificate.refused] == [0.001]
    kept = data.scores >= certificate.threshold
    assert data.labels is None
    assert (data.graded.cloud == 1).all()
    np.testing.assert_array_equal(data.graded.edge, data.graded.alike)
    assert certificate.kept_count == kept.sum() > 0
    assert certificate.harm_mean == pytest.approx((kept * (1 - data.graded.alike)).mean())
    assert certificate.audit_max_harm == certificate.max_harm


def test_with_right_answers_both_models_are_graded_by_them(by_answers: Compiled) -> None:
    certificate, data = held(by_answers)
    assert certificate.harm == "labels"
    assert data.labels is not None
    assert 0 < data.graded.cloud.mean() < 1
    assert (data.graded.alike != data.graded.edge).any()
    worse = np.maximum(data.graded.cloud - data.graded.edge, 0)
    assert certificate.harm_mean == pytest.approx(((data.scores >= certificate.threshold) * worse).mean())
    assert certificate.audit_max_harm >= certificate.max_harm
    cascade = by_answers.evaluation.targets[0].cascade
    assert cascade is not None
    assert cascade.figures is not None
    assert cascade.figures.accuracy is not None
    assert 0 < cascade.figures.accuracy.value < 1


def test_everything_that_shows_a_certificate_says_whose_opinion_it_is(compiled: Compiled, by_answers: Compiled) -> None:
    for one, compared in ((compiled, "the cloud's answers"), (by_answers, "the right answers")):
        opinion = held(one)[0].opinion
        said = f"quality, as score.py:overlap ({opinion.digest[:19]}) grades answers by {compared}, against always"
        verified = cli(certify.command, "verify", one.directory)
        assert "every figure recomputed" in verified
        assert f"in the opinion of score.py:overlap {opinion.digest}, which graded answers by {compared}" in verified
        inspected = " ".join(cli(artifact.command, "inspect", one.directory).split())
        assert said in inspected
        assert "points on average over all, " in inspected
        assert "a device needs score.py:overlap for it (cascade.metric_of)" in inspected
        report = (one.directory / "report.html").read_text().replace("&#39;", "'")
        assert said.partition(", against")[0] in report
        assert f"compared with {compared}; source <code>{opinion.digest}</code>" in report
        assert "This is that function's opinion" in report


def test_the_evaluation_measures_by_the_metric_and_names_its_source(compiled: Compiled) -> None:
    found = evaluations.decode((compiled.directory / "evaluation.json").read_bytes())
    opinion = held(compiled)[0].opinion
    assert found.judged_by == {"metric": f"score.py:overlap {opinion.digest}"}
    (target,) = found.targets
    assert target.metric == "overlap"
    assert 0 < target.variant.quality.value < 1
    assert found.cloud.quality.value == 1.0
    assert target.cascade is not None
    assert target.cascade.figures is not None
    assert target.cascade.figures.accuracy is not None
    assert target.variant.quality.value <= target.cascade.figures.accuracy.value <= 1.0


def test_a_plan_says_whose_opinion_the_promise_will_be_about(directory: Path, compiled: Compiled) -> None:
    (directory / "recipe.toml").write_text(RECIPE)
    steps = dict(plan.plan(recipes.load(directory / "recipe.toml"), directory / "planned"))
    opinion = held(compiled)[0].opinion
    assert f"by token_min in the opinion of score.py:overlap ({opinion.digest[:19]}); at least" in steps["certify"]


def test_a_certificate_with_another_opinion_does_not_verify(compiled: Compiled) -> None:
    certificate, _ = held(compiled)
    stored = evidence.decode(Layout(compiled.directory).blobs.read(certificate.evidence_digest))
    assert evidence.differences(msgspec.structs.replace(certificate, opinion=None), stored)


def test_another_source_of_the_metric_is_another_certificate(directory: Path, compiled: Compiled) -> None:
    (directory / "score.py").write_text(SCORE.replace("return 1.0", "return 1"))
    try:
        again = compile_in(directory, out="again")
    finally:
        (directory / "score.py").write_text(SCORE)
    assert not again.was_kept
    assert held(again)[0].opinion.digest != held(compiled)[0].opinion.digest
    assert held(again)[0].threshold == held(compiled)[0].threshold


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (('"score.py:overlap"', '"accuracy"'), ConfigError, "'accuracy' is not for task 'generation'.*takes a prompt"),
        (('"score.py:overlap"', '"score.py:nothing"'), InvalidInput, "score.py has no function 'nothing'"),
        (
            ('"score.py:overlap"', '"score.py:overlap"\ncorrect_at = 0.5'),
            ConfigError,
            "model.correct: answers of a gen",
        ),
        (("[0.5, 0.001]", "0.001"), CalibrationError, "90 certifying examples are too few .*: 2995 are needed even if"),
        (
            ("max_new_tokens", 'choices = ["a", "b"]\nmax_new_tokens'),
            ConfigError,
            "model.metric: answers among options",
        ),
    ],
)
def test_settings_that_language_models_do_not_have_are_refused(
    directory: Path, change: tuple[str, str], error: type[PenstockError], message: str
) -> None:
    with pytest.raises(error, match=message):
        compile_in(directory, RECIPE.replace(*change), out="refused")


def test_a_metric_that_fails_is_told_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(
        "def ratio(prompt, answer, reference):\n    return len(answer) / len(reference)\n"
    )
    metric = TextMetric.load("score.py:ratio", tmp_path, setting="model.metric")
    asked = PromptSet(name="tune", rows=tuple(Prompt(prompt=f"prompt {n}", answer="right") for n in range(3)))
    found = grading.grade(metric, asked, ["a", "ab", "abcd"], ["abcd"] * 3, by_answers=True)
    assert (found.alike.tolist(), found.edge.tolist(), found.cloud.tolist()) == (
        [0.25, 0.5, 1.0],
        pytest.approx([0.2, 0.4, 0.8]),
        pytest.approx([0.8] * 3),
    )
    where = r"model.metric: score.py:ratio, row 1 of tune \('prompt 1'\), edge by cloud: "
    with pytest.raises(InvalidInput, match=where + r"score.py:2 in ratio: ZeroDivisionError"):
        grading.grade(metric, asked, ["a"] * 3, ["b", "", "c"], by_answers=False)
    with pytest.raises(InvalidInput, match=where + r"gave 2, expected 0 to 1"):
        grading.grade(metric, asked, ["a", "ab", "a"], ["b"] * 3, by_answers=False)


# --- on a device


def ask_all(agent: AgentProcess, prompts: list[str], threshold: float) -> set[str]:
    """Ask, and hold each answer to the certificate."""
    served = set()
    with Client(agent.target) as client:
        for prompt in prompts:
            answer = client.generate(NAME, prompt)
            served.add(answer.served_by)
            assert answer.confidence is not None
            expected = ("edge", "confident") if answer.confidence >= threshold else ("cloud", "escalated")
            assert (answer.served_by, answer.reason) == expected
    return served


def test_a_device_keeps_escalates_and_audits_by_the_metric_that_it_was_compiled_with(
    directory: Path,
    compiled: Compiled,
    core_factory: Callable[..., CoreProcess],
    agent_factory: Callable[..., AgentProcess],
) -> None:
    certificate, _ = held(compiled)
    core = core_factory()
    core.push(compiled.directory)
    watched = '\n[cascade]\naudit_share = 1.0\n\n[cascade.metric_of]\ncodecomplete = "{}"\n'
    agent = agent_factory(core, config=AGENT_CONFIG + watched.format(directory / "score.py:overlap"))
    blind = agent_factory(core, device_id="a2", config=AGENT_CONFIG + "\n[cascade]\naudit_share = 1.0\n")
    core.release(f"{NAME}:open-text", devices=2)
    prompts = [row["prompt"] for row in places.held_out()[:16]]
    for one in (agent, blind):
        one.wait_until_runs(NAME, "open-text")
        assert ask_all(one, prompts, certificate.threshold) == {"edge", "cloud"}

    def counts(one: AgentProcess) -> dict[str, int]:
        (model,) = one.status()["models"]
        found: dict[str, int] = model["counts"]
        return found

    wait_until("every audit", lambda: counts(agent)["audited"] == len(prompts))
    (model,) = agent.status()["models"]
    assert (model["mode"], model["unwatched"]) == ("CASCADE", "")
    assert "as score.py:overlap" in model["promise"]
    assert counts(agent)["audit_harm"] <= counts(agent)["kept"]
    (model,) = blind.status()["models"]
    assert (model["mode"], counts(blind)["audited"]) == ("CASCADE", 0)
    assert "nothing on this device watches the promise" in model["unwatched"]
    assert "nothing on this device watches the promise" in cli(agent_cli.command, "status", "--socket", blind.socket)
    exposed = blind.get("/metrics")[1].decode()
    assert f'penstock_agent_audits_unavailable_total{{model="{NAME}",version="open-text"}} {len(prompts)}.0' in exposed
