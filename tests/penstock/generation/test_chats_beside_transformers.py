"""Our prompts and transformers' own, for templates in the shapes that published models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock import toolchain
from penstock.errors import InvalidInput
from penstock.generation import golden_chats, tokenizer
from penstock.generation.chat_template import ChatTemplate
from penstock.toolchain import locations
from penstock.toolchain.definitions import find
from tests.penstock.generation import chat_templates, small_tokenizers

TOOLCHAIN = "transformers5"
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "  Hi <b> & 'x' 日本 🙂 e\u0301\n"}
SAID = {"role": "assistant", "content": " ok \n", "name": None}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wie warm ist es <jetzt>?",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"celsius": -3.5}'}
CHATS: list[dict[str, Any]] = [
    {"conversation": [USER], "add_generation_prompt": True},
    {"conversation": [USER], "add_generation_prompt": False},
    {"conversation": [{"role": "system", "content": "Be\n brief. "}, USER], "add_generation_prompt": True},
    {"conversation": [USER, SAID, USER], "add_generation_prompt": True},
    {"conversation": [USER, USER], "add_generation_prompt": True},
    {"conversation": [USER], "tools": [TOOL, TOOL], "add_generation_prompt": True},
    {"conversation": [USER, CALL, RESULT], "tools": [TOOL], "add_generation_prompt": True},
    {"conversation": [USER, {**SAID, "reasoning": "<hm>"}, {"role": "comment", "content": "no"}], "tools": None},
    {"conversation": [{"role": "wizard", "content": ""}], "add_generation_prompt": True},
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers makes of each conversation by each template."""
    if locations.look(find(TOOLCHAIN)).python is None:
        pytest.skip(f"toolchain {TOOLCHAIN} is not installed")
    file = tmp_path_factory.mktemp("chats") / "tokenizer.json"
    file.write_text(small_tokenizers.document("byte level"), encoding="utf-8")
    job = {
        "tokenizer": file,
        "named": NAMED,
        "templates": chat_templates.ALL,
        "chats": CHATS,
        "at": golden_chats.AT.isoformat(),
        "golden": msgspec.to_builtins(golden_chats.CONVERSATIONS),
    }
    return toolchain.call(TOOLCHAIN, Path(__file__).with_name("transformers_runner.py"), job, timeout_s=120)


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_every_prompt_is_the_one_that_transformers_makes(name: str, said: dict[str, Any]) -> None:
    ours = ChatTemplate({"default": chat_templates.ALL[name]}, NAMED)
    loaded = tokenizer.load(small_tokenizers.files("byte level"))
    made = 0
    for chat, theirs in zip(CHATS, said["found"][name], strict=True):
        messages, tools, answer = chat["conversation"], chat.get("tools"), chat.get("add_generation_prompt", False)
        if "refused" in theirs:
            with pytest.raises(InvalidInput) as raised:
                ours.render(messages, at=golden_chats.AT, tools=tools or (), answer=answer)
            assert theirs["refused"] in raised.value.message
            continue
        text = ours.render(messages, at=golden_chats.AT, tools=tools or (), answer=answer)
        assert text == theirs["text"]
        assert loaded.encode(text, add_special_tokens=False) == theirs["ids"]
        made += 1
    assert made >= 2


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_golden_chats_of_a_build_are_made_again_by_a_server(name: str, said: dict[str, Any]) -> None:
    files = small_tokenizers.files("byte level") | {"chat_template.jinja": chat_templates.ALL[name].encode()}
    prompts = said["golden"][name]
    files[golden_chats.FILE] = golden_chats.golden_chats(files, prompts, made_by="transformers")
    golden_chats.check_files(files)
    assert (prompts[0] is None) == (name == "fails without tools")
    assert (prompts[1] is None) == (name in ("Gemma", "Mistral with tools", "fails without tools"))
    assert prompts[3] is not None


def test_a_model_without_a_template_has_no_golden_chats(said: dict[str, Any]) -> None:
    assert said["without"] is None
