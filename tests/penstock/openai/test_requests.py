"""What is understood of a request, and what is refused: with the field that is wrong, and in a sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.generation.plane import Chat
from penstock.generation.values import Grammar, Sampling
from penstock.openai.embeddings import read_embedding
from penstock.openai.requests import Call, read_chat, read_completion

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> Call:
    return read_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> Call:
    return read_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def test_a_plain_chat_asks_for_the_models_own_way() -> None:
    call = chat()
    (request,) = call.requests
    assert request.prompt == Chat(messages=({"role": "user", "content": "hi"},))
    assert (request.model, request.version) == ("m", "")
    assert (request.sampling, request.stop, request.max_new_tokens) == (None, None, None)
    assert (request.top_logprobs, request.grammar) == (None, None)
    assert (call.is_stream, call.include_usage, call.ignored) == (False, False, ())


@pytest.mark.parametrize("fields", [{"seed": 1}, {"top_p": 0.5}, {"top_k": 4}, {"temperature": None}])
def test_what_changes_no_greedy_answer_leaves_the_models_own_way(fields: dict[str, Any]) -> None:
    assert chat(**fields).requests[0].sampling is None


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"temperature": 0}, Sampling()),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 7}, Sampling(temperature=0.5, top_p=0.9, seed=7)),
        ({"presence_penalty": 1}, Sampling(presence_penalty=1.0)),
        ({"logit_bias": {"50256": -100, "3": 0}}, Sampling(logit_bias={50256: -100.0})),
        ({"temperature": 1, "top_k": -1, "min_p": 0.1}, Sampling(temperature=1.0, min_p=0.1)),
    ],
)
def test_sampling_that_was_asked_for_is_told(fields: dict[str, Any], sampling: Sampling) -> None:
    assert chat(**fields).requests[0].sampling == sampling


def test_several_answers_have_seeds_that_follow_each_other_and_prompts_come_one_after_the_other() -> None:
    call = completion(prompt=["a", "b"], n=2, temperature=1, seed=2**63 - 1)
    asked = [(request.prompt, request.sampling and request.sampling.seed) for request in call.requests]
    assert asked == [("a", 2**63 - 1), ("a", 0), ("b", 2**63 - 1), ("b", 0)]
    assert [call.is_first_of_prompt(index) for index in range(4)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, read: tuple[Any, ...]) -> None:
    assert tuple(request.prompt for request in completion(prompt=prompt).requests) == read


@pytest.mark.parametrize(
    ("written", "model", "version"),
    [
        ("m", "m", ""),
        ("m:v2", "m", "v2"),
        ("m@sha256:ab", "m", "sha256:ab"),
        ("a/b:v2", "a/b", "v2"),
    ],
)
def test_a_model_is_named_with_a_tag_or_a_digest(written: str, model: str, version: str) -> None:
    call = chat(model=written)
    assert (call.model, call.requests[0].model, call.requests[0].version) == (written, model, version)


def test_a_conversation_reaches_the_template_as_texts_with_arguments_as_objects() -> None:
    call = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "short"}]},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "add them",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice="auto",
    )
    prompt = call.requests[0].prompt
    assert isinstance(prompt, Chat)
    assert prompt.messages == (
        {"role": "system", "content": "be\nshort"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "add them",
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"},
                {"type": "function", "function": {"name": "g", "arguments": {}}, "id": "c2"},
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    )
    assert prompt.tools[0]["function"]["name"] == "f"


def test_a_choice_of_no_tool_keeps_them_from_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    prompt = chat(tools=tools, tool_choice="none").requests[0].prompt
    assert isinstance(prompt, Chat)
    assert prompt.tools == ()


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(kind="json_schema", text='{"type":"object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}},
            Grammar(kind="json_schema", text='{"type":"null"}'),
        ),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Grammar(kind="choice", text='["a","b"]')),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Grammar(kind="regex", text="a+")),
    ],
)
def test_what_the_answer_has_to_look_like_is_a_grammar(fields: dict[str, Any], grammar: Grammar | None) -> None:
    assert chat(**fields).requests[0].grammar == grammar


def test_log_probabilities_are_asked_for_in_the_way_of_each_api() -> None:
    assert chat(logprobs=True).requests[0].top_logprobs == 0
    assert chat(logprobs=True, top_logprobs=5).requests[0].top_logprobs == 5
    assert chat(logprobs=False).requests[0].top_logprobs is None
    assert completion(logprobs=0).requests[0].top_logprobs == 0


def test_both_names_of_the_limit_are_read_and_extensions_are_parameters() -> None:
    assert chat(max_tokens=3).requests[0].max_new_tokens == 3
    assert chat(max_completion_tokens=4, max_tokens=None).requests[0].max_new_tokens == 4
    assert chat(penstock={"local_only": True}).requests[0].parameters == {"local_only": True}


def test_unknown_fields_are_ignored_and_named_and_harmless_ones_are_not() -> None:
    call = chat(zebra=1, user="u", store=True, apple={"x": 1}, echo=False, verbosity="medium")
    assert call.ignored == ("apple", "zebra")
    many = chat(**{f"x{number:02}": 1 for number in range(20)})
    assert many.ignored[-1] == "12 more"


def test_usage_in_a_stream_is_asked_for() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True).include_usage


CALL = {"type": "function", "function": {"name": "f", "arguments": "{"}}
BAD_OF_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"model": "m:"}, "model"),
    ({"model": None}, "model"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"n": "1"}, "n"),
    ({"n": 1.5}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -1}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["x"] * 100}, "stop"),
    ({"stop": "x" * 1_000_000}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream_options": {"include_usage": 3}, "stream": True}, "stream_options.include_usage"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
    ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
    ({"logit_bias": {str(token): 1 for token in range(2000)}}, "logit_bias"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": {}}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"penstock": {"x": [1]}}, "penstock[...]"),
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"ignore_eos": True}, "ignore_eos"),
    ({"stop_token_ids": [1]}, "stop_token_ids"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"guided_json": {}}, "guided_json"),
]
BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content"),
    ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
        "messages[0].content[1]",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages[0].tool_calls[0].function.arguments"),
    ({"messages": [USER] * 5000}, "messages"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"modalities": ["text", "audio"]}, "modalities"),
]
BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt[0]"),
    ({"prompt": [[1], []]}, "prompt[1]"),
    ({"prompt": [1, -2]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [2**40]}, "prompt[0]"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": ["a"] * 200}, "prompt"),
    ({"prompt": ["a"] * 100, "n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"best_of": 3}, "best_of"),
]


@pytest.mark.parametrize(("fields", "field"), BAD_OF_BOTH + BAD_CHATS)
def test_a_wrong_chat_is_refused_by_the_name_of_what_is_wrong(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        chat(**fields)
    assert refused.value.field == field
    assert field in refused.value.message


@pytest.mark.parametrize(("fields", "field"), BAD_OF_BOTH + BAD_COMPLETIONS)
def test_a_wrong_completion_is_refused_by_the_name_of_what_is_wrong(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        completion(**fields)
    assert refused.value.field == field
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "line 1, column 1"),
        (b'{"model": "m",\n "messages": [}', "line 2, column 15"),
        (b"[]", "expected a JSON object"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"temperature": NaN}', "NaN is not JSON"),
        (b'{"temperature": Infinity}', "Infinity is not JSON"),
        (b'{"temperature": -Infinity}', "-Infinity is not JSON"),
        (b'{"temperature": 1e999}', "larger than any number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not readable"),
        (b'{"x": "\\ud800"}', "half a surrogate pair"),
        (b'{"x": ["\\udc00\\ud800"]}', "half a surrogate pair"),
        (b'{"\\ud800": 1}', "half a surrogate pair"),
        (b'{"n": 1, "n": 2}', "n: stands twice"),
        (b'{"x": {"y": 1, "y": 1}}', "y: stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x":' * 100_000, "nested too deeply"),
        (b'{"x": "\x01"}', "control character"),
    ],
)
def test_a_body_that_is_no_clear_json_object_is_refused(body: bytes, said: str) -> None:
    for read in (read_chat, read_completion, read_embedding):
        with pytest.raises(InvalidInput, match=said):
            read(body)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    body = b'{"model": "m", "prompt": "\\ud83d\\ude00"}'
    assert read_completion(body).requests[0].prompt == "\U0001f600"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({name for fields, _ in BAD_OF_BOTH + BAD_CHATS + BAD_COMPLETIONS for name in fields})


@settings(max_examples=60)
@given(fields=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4))
def test_whatever_stands_in_a_field_is_read_or_refused(fields: dict[str, Any]) -> None:
    for read in (chat, completion):
        with suppress(InvalidInput):
            assert isinstance(read(**fields), Call)


def test_embeddings_are_asked_for_in_the_same_forms() -> None:
    body = {"model": "e:v1", "input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8, "colour": 1}
    call = read_embedding(json.dumps(body).encode())
    asked = call.request
    assert (asked.model, asked.version, asked.inputs, asked.dimensions) == ("e", "v1", ((1, 2), (3,)), 8)
    assert (call.is_base64, call.ignored) == (True, ("colour",))
    assert len(read_embedding(json.dumps({"model": "e", "input": ["x"] * 2048}).encode()).request.inputs) == 2048


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_a_wrong_request_for_embeddings_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_embedding(json.dumps({"model": "e", "input": "x", **fields}).encode())
    assert refused.value.field == field
