"""Answers among options: asked of the engine that serves, certified like a classifier, and served the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.certificate import learn_then_test
from compiler.generation import choices, prompts
from compiler.generation.built_model import BuiltModel
from compiler.generation.choices import AnsweredChoices, Chosen
from compiler.generation.prompts import Prompt, PromptSet
from compiler.generation.serving_engine import SCORES_NONE
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError, CompileError, ConfigError, InvalidInput
from tests.language import CHOICE_STOP, EDGE, MODELS, choice_rows


def set_of(*given: dict[str, Any]) -> PromptSet:
    return PromptSet(name="x", rows=tuple(Prompt(**row) for row in given))


def said(*texts: str, logprobs: list[list[float]] | None = None) -> Chosen:
    found = logprobs or [[-1.0, -2.0]] * len(texts)
    return Chosen(texts=texts, logprobs=tuple(np.array(row) for row in found))


# --- which options there are


def test_options_are_the_recipes_or_the_prompts_own() -> None:
    plain, own = set_of({"prompt": "a"}, {"prompt": "b"}), set_of({"prompt": "a", "choices": ("x", "y")})
    how: dict[str, Any] = {"stop": ("\n",), "normalisation": "whitespace"}
    assert choices.options_of(plain, (), **how) == ()
    assert choices.options_of(plain, ("yes", "no"), **how) == (("yes", "no"), ("yes", "no"))
    assert choices.options_of(own, (), **how) == (("x", "y"),)
    with pytest.raises(ConfigError, match=r"generation\.choices: the prompts have choices of their own"):
        choices.options_of(own, ("yes", "no"), **how)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("yes",), "1 options; expected 2 to 256"),
        (tuple(str(at) for at in range(1000)), "1000 options; expected 2 to 256"),
        (("yes", ""), "one is empty"),
        (("yes", "no", "yes"), "'yes' counts as the same answer as another one"),
        (("yes", "yes "), "counts as the same answer"),
        (("yes\nno", "no"), "holds a string at which answers stop"),
    ],
)
def test_options_that_are_none_are_refused_by_name(options: tuple[str, ...], why: str) -> None:
    how: dict[str, Any] = {"stop": ("\n",), "normalisation": "whitespace"}
    with pytest.raises(ConfigError, match=rf"generation\.choices: .*{why}"):
        choices.options_of(set_of({"prompt": "a"}), options, **how)
    with pytest.raises(InvalidInput, match=rf"choices of 'ab' \(x, 1\): .*{why}"):
        choices.options_of(
            set_of({"prompt": "a", "choices": ("x", "y")}, {"prompt": "ab", "choices": options}), (), **how
        )


def test_a_right_answer_that_is_none_of_the_options_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the right answer, 'maybe', is none of them"):
        choices.options_of(
            set_of({"prompt": "a", "answer": "maybe"}), ("yes", "no"), stop=(), normalisation="whitespace"
        )


def test_a_score_that_answers_cannot_have_is_refused_before_anything_is_built() -> None:
    for score in ("auto", "max_prob", "margin", "entropy"):
        choices.check_score(score, are_options=True)
    choices.check_score("prompt_max_prob", are_options=False)
    with pytest.raises(ConfigError, match="among options have no 'token_min'; they have max_prob, margin, entropy"):
        choices.check_score("token_min", are_options=True)
    with pytest.raises(ConfigError, match="in free text have no 'margin'; they have prompt_max_prob, token_min"):
        choices.check_score("margin", are_options=False)


def test_prompts_with_choices_are_read_from_lines_and_functions(tmp_path: Path) -> None:
    given = [{"prompt": "a", "choices": ["x", "y"]}, {"prompt": "b", "choices": ["x", "z"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (tmp_path / "rows.py").write_text(f"def rows():\n    yield from {given!r}\n")
    for source in ("rows.jsonl", "rows.py:rows"):
        assert prompts.load(source, base=tmp_path).choices == (("x", "y"), ("x", "z"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "choices": ["x", "y"]}\n{"prompt": "b"}\n')
    with pytest.raises(InvalidInput, match="some rows have a choices and some do not"):
        prompts.load("rows.jsonl", base=tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "choices": "xy"}\n')
    with pytest.raises(InvalidInput, match="a list of them for choices"):
        prompts.load("rows.jsonl", base=tmp_path)


def test_what_there_is_to_choose_from_is_part_of_a_prompt_and_of_no_other_digest() -> None:
    same = {"prompt": "a", "choices": ("x", "y")}
    one, other = set_of(same, same | {"choices": ("y", "x")}), set_of(same, same | {"choices": ("x", "z")})
    shares = {"tune": 1.0}
    assert len(prompts.split(one, seed=0, shares=shares)[0]["tune"]) == 1  # the same again, in another order
    assert len(prompts.split(other, seed=0, shares=shares)[0]["tune"]) == 2
    assert one.digest != set_of(same, same).digest
    without = set_of({"prompt": "a", "answer": "b"})
    assert without.digest == "sha256:5663beb20c7fd5d88c7178bcc550f62c6a07666659c4cf8491e2fcc9921543e9"


# --- what is promised of them


def test_columns_are_those_of_a_classifier() -> None:
    found = choices.columns(
        said("b", "a", logprobs=[[math.log(0.1), math.log(0.3)], [-1.0, -1.0, -1.0]]),
        said("b", "c"),
        set_of({"prompt": "p", "answer": "b"}, {"prompt": "q", "answer": "c "}),
        (("a", "b"), ("a", "b", "c")),
        normalisation="whitespace",
    )
    assert (found.edge == found.cloud).tolist() == [True, False]
    assert found.labels is not None
    assert (found.edge == found.labels).tolist() == [True, False]
    assert found.classes.tolist() == [1, 2]
    known = found.sure_and_right(1.0)
    assert known is not None
    assert known[0] == pytest.approx([0.75, 1 / 3])
    assert known[1].tolist() == [True, False]


def simulated(count: int, seed: int) -> AnsweredChoices:
    """An edge that is overconfident and knows how sure it is by rank; 2 to 5 options a prompt."""
    source = np.random.default_rng(seed)
    rows, edge, cloud, right = [], [], [], []
    for _ in range(count):
        logits = source.normal(0, 2, source.integers(2, 6))
        likely = np.exp(logits - logits.max())
        right.append(int(source.choice(len(logits), p=likely / likely.sum())))
        rows.append(2 * logits - 40)  # what a model says that is twice as sure as it should be
        edge.append(int(logits.argmax()))
        cloud.append(right[-1] if source.random() < 0.95 else int(source.integers(0, len(logits))))
    return choices.columns(
        said(*map(str, edge), logprobs=[row.tolist() for row in rows]),
        said(*map(str, cloud)),
        set_of(*[{"prompt": str(at), "answer": str(one)} for at, one in enumerate(right)]),
        [[str(at) for at in range(len(row))] for row in rows],
        normalisation="whitespace",
    )


def test_the_certificate_takes_them_with_a_temperature_that_fits() -> None:
    promise = CertificateSection(max_harm=0.05, delta=0.05, harm="labels")
    tune, certifying, test = (simulated(n, seed) for n, seed in ((800, 1), (1500, 2), (4000, 3)))
    choice = tune.choose(promise, rows_to_certify=len(certifying.edge))
    assert choice.temperature == pytest.approx(2.0, rel=0.15)
    assert set(choice.coverage) == {"max_prob", "margin", "entropy"}
    assert choice.drafted == {}
    found = learn_then_test.promise(
        certifying.certify_data(choice, harm="labels"), promise, thresholds=choice.thresholds
    ).default
    on_test = test.certify_data(choice, harm="labels")
    kept = on_test.scores >= found.threshold
    assert on_test.labels is not None
    harm = kept & (on_test.edge_predictions != on_test.labels) & (on_test.cloud_predictions == on_test.labels)
    assert kept.mean() > 0.2
    assert harm.mean() <= 0.05


def test_harm_by_labels_needs_right_answers() -> None:
    found = choices.columns(said("a"), said("b"), set_of({"prompt": "p"}), (("a", "b"),), normalisation="whitespace")
    assert found.sure_and_right(1.0) is None
    with pytest.raises(CalibrationError, match="labels"):
        found.choose(CertificateSection(harm="labels"), rows_to_certify=1)


# --- who is asked


def test_the_engine_that_serves_chooses_and_is_told_what_it_cannot() -> None:
    given = choice_rows(40)[:6]
    found = choices.chosen(
        BuiltModel(directory=MODELS / EDGE), [row["prompt"] for row in given], [row["choices"] for row in given],
        stop=CHOICE_STOP,
    )  # fmt: skip
    for row, text, logprobs in zip(given, found.texts, found.logprobs, strict=True):
        assert text == row["choices"][int(logprobs.argmax())]
        assert len(logprobs) == len(row["choices"]) == 4
        assert (logprobs < 0).all()
    with pytest.raises(CompileError, match=r"prompt 0: choices: 'a\.b' holds '\.', at which answers stop"):
        choices.chosen(BuiltModel(directory=MODELS / EDGE), ["x"], [["a.b", "c"]], stop=CHOICE_STOP)


def test_a_model_that_another_engine_runs_is_refused_before_it_is_measured(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=SCORES_NONE):
        choices.check_engine(BuiltModel(directory=MODELS / EDGE, in_toolchain=True))
    copied = tmp_path / "model"
    copied.mkdir()
    for file in (MODELS / EDGE).iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    config = json.loads((copied / "genai_config.json").read_text())
    config["model"]["type"] = "phi3"  # sliding windows: onnxruntime-genai's
    (copied / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(CompileError, match=SCORES_NONE):
        choices.check_engine(BuiltModel(directory=copied))
