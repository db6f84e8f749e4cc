"""Golden chats: the same prompts pass, and every difference is told before a model answers anybody."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import ArtifactError
from penstock.generation import chat_template, golden_chats, tokenizer
from penstock.generation.golden_chats import AT, CONVERSATIONS, FILE
from tests.penstock.generation import chat_templates, small_tokenizers


def model(source: str = chat_templates.GEMMA) -> dict[str, bytes]:
    """Return a model's files with golden chats that are ours, as a build makes them."""
    files = small_tokenizers.files("byte level") | {"chat_template.jinja": source.encode()}
    loaded, template = tokenizer.load(files), chat_template.load(files)
    assert template is not None
    prompts = [golden_chats._prompt(conversation, loaded, template) for conversation in CONVERSATIONS]
    return files | {FILE: golden_chats.golden_chats(files, prompts, made_by="transformers 5")}


def changed(files: dict[str, bytes], change: Any) -> dict[str, bytes]:
    document = json.loads(files[FILE])
    change(document)
    return files | {FILE: json.dumps(document).encode()}


def test_the_same_prompts_pass_and_a_refusal_is_one_of_them() -> None:
    golden_chats.check_files(model())
    chats = json.loads(model()[FILE])["chats"]
    assert chats[0]["ids"]
    assert chats[1]["ids"] is None  # Gemma's template has no role for a system
    assert model() == model()


def test_dates_are_always_the_same() -> None:
    dated = model("{{ strftime_now('%d %b %Y') }}")
    first = json.loads(dated[FILE])["chats"][0]["ids"]
    assert first == tokenizer.load(dated).encode(AT.strftime("%d %b %Y"), add_special_tokens=False)
    golden_chats.check_files(dated)


def test_what_has_nothing_to_compare_passes() -> None:
    golden_chats.check_files({name: content for name, content in model().items() if name != FILE})
    golden_chats.check_files(small_tokenizers.files("byte level"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda golden: golden["chats"][0]["ids"].pop(), "conversation 0 of chats.json becomes another prompt"),
        (lambda golden: golden["chats"][0].update(ids=None), "tokens .* instead of a refusal"),
        (lambda golden: golden["chats"][1].update(ids=[1]), "a refusal instead of 1 tokens"),
        (lambda golden: golden.update(template="sha256:0"), "another chat template"),
        (lambda golden: golden.update(tokenizer="sha256:0"), "another tokenizer"),
        (lambda golden: golden.update(format=2), "format 2, this Penstock reads 1"),
        (lambda golden: golden.update(more=2), "cannot be read"),
    ],
)
def test_a_difference_is_told(change: Any, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        golden_chats.check_files(changed(model(), change))


def test_another_template_or_special_token_is_told() -> None:
    files = model()
    with pytest.raises(ArtifactError, match="another chat template"):
        golden_chats.check_files(files | {"chat_template.jinja": chat_templates.GEMMA.encode() + b" "})
    with pytest.raises(ArtifactError, match="another chat template"):
        golden_chats.check_files(files | {"tokenizer_config.json": b'{"bos_token": "</s>"}'})
    with pytest.raises(ArtifactError, match="another tokenizer"):
        golden_chats.check_files(files | {"tokenizer.json": small_tokenizers.document("words").encode()})
