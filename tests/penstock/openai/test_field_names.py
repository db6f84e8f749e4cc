"""Errors name the fields that a client sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import InvalidInput, NotFound
from penstock.openai.field_names import as_sent, named
from penstock.openai.oip_texts import read_generate
from penstock.openai.requests import read_chat, read_completion

SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


def sent(names: Any, field: str, message: str = "") -> tuple[str, str]:
    error = as_sent(InvalidInput(message or f"{field}: wrong", field=field), names)
    return error.field, error.message


def completion(**fields: Any) -> Any:
    return read_completion(json.dumps({"model": "m", "prompt": "x", **fields}).encode())


def chat(**fields: Any) -> Any:
    said = [{"role": "user", "content": "x"}]
    return read_chat(json.dumps({"model": "m", "messages": said, **fields}).encode())


def test_what_was_sent_is_what_is_wrong() -> None:
    call = completion(prompt=[5, 6], structured_outputs={"regex": "a"}, logprobs=3)
    assert sent(call.names_of(0), "prompt_ids[1]") == ("prompt[1]", "prompt[1]: wrong")
    assert sent(call.names_of(0), "grammar") == ("structured_outputs", "structured_outputs: wrong")
    assert sent(call.names_of(0), "top_logprobs") == ("logprobs", "logprobs: wrong")
    assert sent(call.names_of(0), "max_tokens", "max_tokens is 0") == ("max_tokens", "max_tokens is 0")
    assert sent(call.names_of(0), "seed") == ("seed", "seed: wrong")


def test_of_several_prompts_each_has_its_place() -> None:
    call = completion(prompt=[[5], [6]], n=2)
    fields = [sent(call.names_of(index), "prompt_ids[0]")[0] for index in range(4)]
    assert fields == ["prompt[0][0]", "prompt[0][0]", "prompt[1][0]", "prompt[1][0]"]
    assert sent(completion(prompt=["a", "b"]).names_of(1), "prompt", "the prompt has")[0] == "prompt[1]"


def test_a_conversation_has_names_of_its_own() -> None:
    call = chat(response_format=SCHEMA, max_completion_tokens=9)
    assert sent(call.names_of(0), "prompt", "the prompt has 9 tokens") == ("messages", "the prompt has 9 tokens")
    assert sent(call.names_of(0), "grammar")[0] == "response_format"
    assert sent(call.names_of(0), "max_tokens", "max_tokens is 9") == (
        "max_completion_tokens", "max_completion_tokens is 9",
    )  # fmt: skip
    assert sent(chat(max_tokens=9).names_of(0), "max_tokens")[0] == "max_tokens"


def test_the_inference_protocol_calls_them_parameters() -> None:
    body = {"text_input": "x", "response_format": SCHEMA}
    names = read_generate(json.dumps(body).encode(), model="m", version="").names
    assert sent(names, "prompt_ids[3]")[0] == "text_input[3]"
    assert sent(names, "grammar")[0] == "parameters.response_format"
    assert sent(names, "max_tokens", "max_tokens is 9") == ("parameters.max_tokens", "parameters.max_tokens is 9")


def test_other_errors_pass_as_they_are() -> None:
    names = completion().names_of(0)
    with pytest.raises(NotFound, match="prompt_ids"), named(names):
        raise NotFound("prompt_ids")
    with pytest.raises(InvalidInput, match="^prompt: none") as wrong, named(names):
        raise InvalidInput("prompt_ids: none", field="prompt_ids")
    assert wrong.value.field == "prompt"
    assert as_sent(InvalidInput("no field"), names).field == ""
