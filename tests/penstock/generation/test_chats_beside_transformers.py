"""Our prompts and transformers' own, for templates in the shapes that published models have."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from penstock import toolchain
from penstock.errors import InvalidInput
from penstock.generation import tokenizer
from penstock.generation.chat_template import ChatTemplate
from penstock.toolchain import locations
from penstock.toolchain.definitions import find
from tests.penstock.generation import chat_templates, small_tokenizers

TOOLCHAIN = "transformers5"
AT = datetime(2026, 3, 4, 5, 6)
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
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
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
        "at": AT.isoformat(),
    }
    said: dict[str, list[dict[str, Any]]] = toolchain.call(
        TOOLCHAIN, Path(__file__).with_name("transformers_runner.py"), job, timeout_s=120
    )["found"]
    return said


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_every_prompt_is_the_one_that_transformers_makes(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    ours = ChatTemplate({"default": chat_templates.ALL[name]}, NAMED)
    loaded = tokenizer.load(small_tokenizers.files("byte level"))
    made = 0
    for chat, theirs in zip(CHATS, found[name], strict=True):
        messages, tools, answer = chat["conversation"], chat.get("tools"), chat.get("add_generation_prompt", False)
        if "refused" in theirs:
            with pytest.raises(InvalidInput) as raised:
                ours.render(messages, at=AT, tools=tools or (), answer=answer)
            assert theirs["refused"] in raised.value.message
            continue
        text = ours.render(messages, at=AT, tools=tools or (), answer=answer)
        assert text == theirs["text"]
        assert loaded.encode(text, add_special_tokens=False) == theirs["ids"]
        made += 1
    assert made >= 3
