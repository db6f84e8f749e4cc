"""What a request for one of some options becomes: for a model whose answers are options, and for every other one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.artifact.layout import Layout
from penstock.artifact.variant_files import verified_files
from penstock.errors import ArtifactError, ConfigError, InvalidInput
from penstock.generation import tokenizer
from penstock.generation.choices import grammar_of
from penstock.generation.plane import TextRequest
from penstock.generation.values import GenerationRequest, Sampling
from penstock.hosting.generation import text_model
from penstock.hosting.generation.prompts import Vocabulary, prepared
from penstock.hosting.generation.settings import GenerationSettings, RemoteSettings, TextLimits
from penstock.policy.text_answers import AnswerSpec
from penstock.runtime.generation import EngineFacts
from tests.language import EDGE, text_draft
from tests.penstock.generation.small_tokenizers import files

READS = tokenizer.load(files("byte level"))
CHOICES = ("yes", "no", "not sure")
FACTS = EngineFacts(
    context_tokens=64, vocabulary=READS.facts.vocabulary, slots=1, end_ids=frozenset({1}), kv_bytes_per_token=1,
    grammars=frozenset({"choice"}), scores_options=True,
)  # fmt: skip


def asked(choices: tuple[str, ...] | None, **fields: Any) -> GenerationRequest:
    """What an engine is asked; the model's answers are among ``choices``, or free text for None."""
    limits = {"max_new_tokens": 9, "stop": ("\n",)}
    answer = AnswerSpec(**limits) if choices is None else AnswerSpec(**limits, choices=choices)  # type: ignore[arg-type]
    return prepared(
        TextRequest(**{"model": "m", "prompt": "Hello", **fields}),
        Vocabulary(tokenizer=READS, template=None, answer=answer),
        FACTS,
        TextLimits(),
        id="a",
        seed=0,
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def texts(request: GenerationRequest) -> list[str]:
    assert request.options is not None
    return [b"".join(map(READS.pieces.bytes_of, ids)).decode() for ids in request.options.ids]


def test_a_request_that_names_none_is_asked_for_the_artifacts_own_options() -> None:
    request = asked(CHOICES)
    assert texts(request) == list(CHOICES)
    assert request.options is not None
    assert request.max_new_tokens == request.options.longest
    assert request.grammar == grammar_of(CHOICES)  # for whoever is asked in texts
    assert set(request.options.end_ids) == {1} | READS.beginning_with(("\n",))


def test_a_request_may_name_its_own() -> None:
    for own in (CHOICES, ()):
        assert texts(asked(own, grammar=grammar_of(("a", "b")))) == ["a", "b"]
    assert asked(()).options is None  # and has to, where the artifact has none


@pytest.mark.parametrize(
    "fields", [{"sampling": Sampling(temperature=1.0)}, {"stop": ()}, {"stop": ("\n", "x")}, {"top_logprobs": 2}]
)
def test_what_is_asked_for_in_another_way_is_held_to_the_grammar(fields: dict[str, Any]) -> None:
    request = asked(CHOICES, **fields)
    assert request.options is None
    assert request.grammar == grammar_of(CHOICES)


def test_a_model_of_free_text_scores_no_options() -> None:
    request = asked(None, grammar=grammar_of(CHOICES))
    assert (request.options, request.max_new_tokens) == (None, 9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_new_tokens": 2}, "max_tokens is 2, and the longest of the choices has 9 tokens with its end"),
        (
            {"prompt": (5,) * 60},
            "the prompt has 60 tokens and max_tokens is 9, together 69; this model has room for 64",
        ),
        ({"grammar": grammar_of(("a", "a"))}, "'a' is there twice"),
        ({"grammar": grammar_of(("a\nb", "c"))}, "at which answers stop"),
    ],
)
def test_options_that_cannot_be_scored_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        asked(CHOICES, **fields)


async def test_a_model_that_is_to_score_is_not_loaded_where_nothing_scores(tmp_path: Path) -> None:
    answer = AnswerSpec(max_new_tokens=4, stop=("\n",), choices=CHOICES)
    layout = Layout.create(tmp_path / "layout")
    layout.pack([text_draft("edge", EDGE, answer=answer, engine="onnxruntime-genai")], tag="v1")
    variant = layout.artifact().variant("edge")
    unpacked = verified_files(variant, layout.blobs, tmp_path / "unpacked")
    remote = RemoteSettings(urls={variant.spec.model: ("http://127.0.0.1:9",)})
    with pytest.raises(ConfigError, match=r"a server of OpenAI's API scores none: .* generation\.remote\.urls"):
        await text_model.load(variant.spec, unpacked, GenerationSettings(remote=remote))
    pytest.importorskip("onnxruntime_genai", reason="the extra genai is not installed")
    with pytest.raises(ArtifactError, match=r"its answers are options, and the engine .* scores none"):
        await text_model.load(variant.spec, unpacked, GenerationSettings())
