"""Conversations become prompts as the model's template says; templates that refuse, fail, loop or grow are told so."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import pytest

from penstock.errors import ArtifactError, InvalidInput, MissingExtra
from penstock.generation import chat_template, template_sandbox
from penstock.generation.chat_template import ChatTemplate
from tests.penstock.generation import chat_templates

AT = datetime(2026, 3, 4, 5, 6)
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "Hi <b> & 日本 🙂"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, NAMED)


def rendered(source: str, *messages: dict[str, Any], tools: Any = (), answer: bool = True) -> str:
    return template(source).render(messages, at=AT, tools=tools, answer=answer)


def test_white_space_of_blocks_is_trimmed_as_transformers_does() -> None:
    assert rendered(chat_templates.CHAT_ML, USER) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi <b> & 日本 🙂<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rendered(chat_templates.CHAT_ML, USER, answer=False).endswith("<|im_end|>\n")


def test_dates_and_json_and_special_tokens() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "<é>"}}
    text = rendered(chat_templates.LLAMA_3, USER, tools=[tool])
    assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 04 Mar 2026\n\n")
    assert json.dumps(tool, indent=4, ensure_ascii=False) in text


def test_parts_of_a_content_that_are_texts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert rendered(chat_templates.PARTS, parts) == "<|user|>ab"
    assert "user\na\nb<|im_end|>" in rendered(chat_templates.CHAT_ML, parts)
    aliased = "{% macro said(content) %}{% for item in content %}{{ item.text }},{% endfor %}{% endmacro %}"
    assert rendered(aliased + "{{ said(messages[0].content) }}", parts) == "a,b,"
    for ignoring in ("{{ messages[0].content if messages[0].content is string }}", "{{ messages[0].content }}"):
        assert rendered(ignoring, parts) == "a\nb"
    with pytest.raises(InvalidInput, match=r"messages\[0\]: a part of its content is no text") as raised:
        rendered(chat_templates.CHAT_ML, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]})
    assert raised.value.field == "messages[0].content"


def test_keys_without_a_value_are_no_keys() -> None:
    assert rendered("{% if 'x' in messages[0] %}yes{% else %}no{% endif %}", {"role": "user", "x": None}) == "no"


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    system = {"role": "system", "content": "be brief"}
    with pytest.raises(InvalidInput, match="refuses this conversation: System role not supported") as raised:
        rendered(chat_templates.GEMMA, system, USER)
    assert raised.value.field == "messages"
    with pytest.raises(InvalidInput, match="Only user and assistant roles are supported!"):
        rendered(chat_templates.MISTRAL_TOOLS, USER, {"role": "wizard", "content": "x"})
    assert "<|im_start|>wizard" in rendered(chat_templates.CHAT_ML, {"role": "wizard", "content": "x"})


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ((), "no messages"),
        (({"role": "user"},), "fails with this conversation"),
        (({"role": "user", "content": 5},), "fails with this conversation"),
    ],
)
def test_a_conversation_without_what_it_needs_is_the_senders(messages: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        rendered(chat_templates.CHAT_ML, *messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** 99999 }}",
        "{{ '%99999999999d' % 1 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x|replace('a', 'aaa') %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content * 100 }}{% endfor %}",
    ],
)
def test_a_template_that_loops_or_grows_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_STEPS", 20_000)
    monkeypatch.setattr(template_sandbox, "MAX_CHARACTERS", 100_000)
    with pytest.raises(InvalidInput, match="stopped at this conversation|fails with this conversation"):
        rendered(source, USER)


def test_many_messages_are_within_the_bounds() -> None:
    turns = [USER, {"role": "assistant", "content": "ok"}] * 1000
    for source in (chat_templates.CHAT_ML, chat_templates.GEMMA, chat_templates.MISTRAL_TOOLS):
        assert len(rendered(source, *turns)) > 20_000


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set x = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
    ],
)
def test_a_template_reaches_nothing_outside(source: str) -> None:
    try:
        text = rendered(source, USER)
    except (InvalidInput, ArtifactError):
        return
    assert text == ""  # what the sandbox hides is undefined, and writes nothing


def test_a_rendering_leaves_nothing_to_the_next_one() -> None:
    made = template("{% for i in range(9) %}{{ i }}{% endfor %}{{ strftime_now('%Y') }}")
    assert made.render([USER], at=AT) == "0123456782026"
    assert made.render([USER], at=datetime(1999, 1, 1)) == "0123456781999"


def test_a_template_is_found_where_transformers_writes_it() -> None:
    config = {"tokenizer_config.json": b'{"chat_template": "config {{ bos_token }}", "bos_token": "<s>"}'}
    found = chat_template.load(config)
    assert found is not None
    assert found.render([USER], at=AT) == "config <s>"
    both = chat_template.load(config | {"chat_template.jinja": b"file"})
    assert both is not None
    assert both.render([USER], at=AT) == "file"
    assert both.digest != found.digest
    assert chat_template.load({"tokenizer_config.json": b"{}"}) is None
    assert chat_template.load({}) is None


def test_a_model_with_several_templates_uses_the_one_for_tools_with_tools() -> None:
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools {{ tools|length }}"}]
    found = chat_template.load({"tokenizer_config.json": json.dumps({"chat_template": several}).encode()})
    assert found is not None
    assert found.render([USER], at=AT) == "plain"
    assert found.render([USER], at=AT, tools=[{"type": "function"}]) == "tools 1"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"chat_template.jinja": b"{% if %}"}, "cannot be read"),
        ({"chat_template.jinja": b"{% nonsense %}"}, "cannot be read"),
        ({"chat_template.jinja": b"\xff"}, "not UTF-8"),
        ({"tokenizer_config.json": b'{"chat_template": 5}'}, "is a int"),
        ({"tokenizer_config.json": b'{"chat_template": [1]}'}, "a list of something else"),
        ({"tokenizer_config.json": b'{"chat_template": [{"name": "rag", "template": ""}]}'}, "none is named default"),
    ],
)
def test_templates_that_cannot_be_read_are_refused(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        chat_template.load(files)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "penstock.generation.template_sandbox")
    monkeypatch.delattr("penstock.generation.template_sandbox")
    with pytest.raises(MissingExtra, match=r"penstock\[generate\]"):
        template("x")
