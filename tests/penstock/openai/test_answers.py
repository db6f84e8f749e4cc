"""Answers and chunks, judged by the types of OpenAI's own client."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from penstock.errors import Unavailable
from penstock.generation.plane import Embedded, TextModel
from penstock.generation.values import TokenEvent
from penstock.openai.answers import Chunks, Finished, Head, answer_document, model_document, models_document
from penstock.openai.embeddings import embeddings_document, read_embedding
from penstock.openai.logprobs import LOWEST, CompletionLogprobs, chat_entry
from penstock.openai.requests import Call, read_chat, read_completion
from tests.penstock.openai.texts import events, token_bytes

types = pytest.importorskip("openai.types", reason="the openai client is not installed: make venv")
chat_types = pytest.importorskip("openai.types.chat", reason="the openai client is not installed: make venv")

HEAD = Head(id="chatcmpl-1", created=1_700_000_000, fingerprint="sha256:ab")
ACCOUNT = {"served_by": "edge", "confidence": 0.9, "threshold": 0.8}


def chat(**fields: Any) -> Call:
    return read_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode())


def completion(**fields: Any) -> Call:
    return read_completion(json.dumps({"model": "m", "prompt": "x", **fields}).encode())


def finished(*texts: str, **options: Any) -> list[Finished]:
    return [
        Finished(events=events(text, **options), prompt_ids=(7, 8, 9), token_bytes=token_bytes, account=ACCOUNT)
        for text in texts
    ]


def parsed(kind: Any, document: dict[str, Any]) -> Any:
    """Parse as the client does, but refuse what it would quietly take for something else."""
    return kind.model_validate_json(msgspec.json.encode(document), strict=True)


def streamed(call: Call, *answers: list[TokenEvent]) -> list[dict[str, Any]]:
    """Write a stream whose choices take turns."""
    chunks = Chunks(call, HEAD)
    made = [chunk for index in range(len(answers)) for chunk in chunks.first(index, (7, 8, 9))]
    for step in range(max(map(len, answers))):
        for index, answer in enumerate(answers):
            if step < len(answer):
                made += chunks.next(index, answer[step], token_bytes, ACCOUNT)
    return made + chunks.end()


def test_a_chat_is_a_chat_completion() -> None:
    document = answer_document(chat(), HEAD, finished("hé"))
    answer = parsed(chat_types.ChatCompletion, document)
    (choice,) = answer.choices
    assert (answer.id, answer.created, answer.model) == (HEAD.id, HEAD.created, "m")
    assert (answer.object, answer.system_fingerprint) == ("chat.completion", HEAD.fingerprint)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "hé")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 4, 7)
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert document["penstock"] == ACCOUNT


def test_a_completion_is_a_text_completion() -> None:
    answer = parsed(types.Completion, answer_document(completion(), HEAD, finished("hé", finish="length")))
    (choice,) = answer.choices
    assert (answer.object, choice.text, choice.finish_reason, choice.logprobs) == (
        "text_completion", "hé", "length", None,
    )  # fmt: skip


def test_several_answers_have_indices_and_accounts_and_a_prompt_counts_once() -> None:
    document = answer_document(completion(prompt=["a", "b"], n=2), HEAD, finished("a", "bb", "c", "d"))
    answer = parsed(types.Completion, document)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a"), (1, "bb"), (2, "c"), (3, "d")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 9)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert [choice["penstock"] for choice in document["choices"]] == [ACCOUNT] * 4
    assert "penstock" not in document


def test_ignored_fields_are_told_with_the_answer() -> None:
    document = answer_document(chat(zebra=1), HEAD, finished("a"))
    assert document["penstock"] == {**ACCOUNT, "ignored": "zebra"}


def test_an_answer_that_was_given_up_is_no_answer() -> None:
    with pytest.raises(Unavailable, match="given up"):
        answer_document(chat(), HEAD, finished("a", finish="cancelled"))
    with pytest.raises(Unavailable, match="given up"):
        streamed(chat(stream=True), events("a", finish="cancelled"))
    broken = [msgspec.structs.replace(event, usage=None) for event in events("a")]
    for cut in (broken, broken[:1]):
        with pytest.raises(Unavailable, match="broke off"):
            streamed(chat(stream=True), cut)
    with pytest.raises(Unavailable, match="broke off"):
        answer_document(chat(), HEAD, finished("", finish="length"))


def test_log_probabilities_of_a_chat_have_bytes_and_alternatives() -> None:
    document = answer_document(chat(logprobs=True, top_logprobs=2), HEAD, finished("hé", top=2))
    content = parsed(chat_types.ChatCompletion, document).choices[0].logprobs.content
    assert [entry.token for entry in content] == ["h", "\ufffd", "\ufffd", ""]
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == "hé"
    assert [(other.token, other.logprob) for other in content[0].top_logprobs] == [("h", -0.5), ("i", -1.5)]


def test_log_probabilities_of_a_completion_are_parallel_lists_with_offsets_of_characters() -> None:
    document = answer_document(completion(logprobs=1), HEAD, finished("hé!", top=2))
    lists = parsed(types.Completion, document).choices[0].logprobs
    assert lists.tokens == ["h", "bytes:\\xc3", "bytes:\\xa9", "!", ""]
    assert lists.text_offset == [0, 1, 2, 2, 3]
    assert lists.token_logprobs == [-0.5] * 5
    assert lists.top_logprobs[0] == {"h": -0.5, "i": -1.5}


def test_a_probability_of_nothing_can_be_written() -> None:
    event = TokenEvent(token=104, text="h", logprob=float("-inf"), top=((105, float("-inf")),))
    assert chat_entry(event, token_bytes)["logprob"] == LOWEST
    assert chat_entry(event, token_bytes)["top_logprobs"][0]["logprob"] == LOWEST
    assert CompletionLogprobs().add(event, token_bytes)["top_logprobs"] == [{"h": LOWEST, "i": LOWEST}]


def test_a_chat_streams_a_role_texts_and_a_reason_in_chunks_of_their_own() -> None:
    documents = streamed(chat(stream=True), events("hé"))
    chunks = [parsed(chat_types.ChatCompletionChunk, document) for document in documents]
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (HEAD.id, HEAD.created, "chat.completion.chunk")
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "h", "é", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert ["penstock" in document for document in documents] == [False, False, False, True]
    assert all("usage" not in document for document in documents)


def test_usage_comes_once_after_everything_else_and_with_no_choices() -> None:
    call = chat(stream=True, n=2, stream_options={"include_usage": True})
    documents = streamed(call, events("a"), events("bb"))
    chunks = [parsed(chat_types.ChatCompletionChunk, document) for document in documents]
    assert [document["usage"] is None for document in documents] == [True] * (len(documents) - 1) + [False]
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 5)


def test_choices_of_a_stream_keep_apart() -> None:
    documents = streamed(completion(stream=True, n=2, logprobs=0), events("ab"), events("c"))
    chunks = [parsed(types.Completion, {**document, "choices": fitting(document)}) for document in documents]
    texts: dict[int, str] = {}
    offsets: dict[int, list[int]] = {}
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        offsets.setdefault(choice.index, []).extend(choice.logprobs.text_offset if choice.logprobs else [])
    assert (texts, offsets) == ({0: "ab", 1: "c"}, {0: [0, 1, 2], 1: [0, 1]})
    accounts = [choice["penstock"] for document in documents for choice in document["choices"] if "penstock" in choice]
    assert accounts == [ACCOUNT, ACCOUNT]


def fitting(document: dict[str, Any]) -> list[dict[str, Any]]:
    """OpenAI's type of a completion has no place for a choice that is not finished, though its own streams do that."""
    return [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in document["choices"]]


@pytest.mark.parametrize("read", [chat, completion])
def test_a_stream_says_the_same_as_the_whole_answer(read: Any) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 1} if read is chat else {"logprobs": 1}
    call = read(return_token_ids=True, **options)
    whole = answer_document(call, HEAD, finished("añb", top=1))["choices"][0]
    chunks = [chunk["choices"][0] for chunk in streamed(call, events("añb", top=1))]
    told = [token for chunk in chunks for token in chunk.get("token_ids", [])]
    assert told == whole["token_ids"] == [*"añb".encode(), 0]
    logprobs = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    if read is chat:
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
        assert [entry for part in logprobs for entry in part["content"]] == whole["logprobs"]["content"]
    else:
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
        for name, values in whole["logprobs"].items():
            assert [value for part in logprobs for value in part[name]] == values
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]


def test_ids_are_told_where_they_were_asked_for() -> None:
    assert answer_document(chat(return_token_ids=True), HEAD, finished("a"))["prompt_token_ids"] == [7, 8, 9]
    assert streamed(chat(return_token_ids=True), events("a"))[0]["prompt_token_ids"] == [7, 8, 9]
    assert streamed(completion(return_token_ids=True), events("a"))[0]["choices"][0]["prompt_token_ids"] == [7, 8, 9]
    assert "prompt_token_ids" not in answer_document(chat(), HEAD, finished("a"))


def test_tokens_are_named_by_ids_where_that_was_asked_for() -> None:
    asked: dict[str, Any] = {"return_tokens_as_token_ids": True}
    told = answer_document(chat(logprobs=True, top_logprobs=2, **asked), HEAD, finished("h", top=2))
    entry = told["choices"][0]["logprobs"]["content"][0]
    assert [entry["token"], *(one["token"] for one in entry["top_logprobs"])] == [
        "token_id:104", "token_id:104", "token_id:105",
    ]  # fmt: skip
    assert entry["bytes"] == [104]
    lists = answer_document(completion(logprobs=1, **asked), HEAD, finished("é", top=2))["choices"][0]["logprobs"]
    assert lists["tokens"] == ["token_id:195", "token_id:169", "token_id:0"]
    assert lists["text_offset"] == [0, 1, 1]
    assert lists["top_logprobs"][0] == {"token_id:195": -0.5, "token_id:196": -1.5}


def test_models_are_listed_once_with_their_context() -> None:
    first = TextModel(name="b", version="sha256:1", created_at=5, context_tokens=128)
    models = [first, TextModel(name="b", version="sha256:2"), TextModel(name="a", version="")]
    document = models_document(models)
    listed = [parsed(types.Model, one) for one in document["data"]]
    assert [(one.id, one.created, one.owned_by) for one in listed] == [("a", 0, "penstock"), ("b", 5, "penstock")]
    assert model_document(first)["max_model_len"] == 128


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_travel_as_numbers_or_as_base64(form: str) -> None:
    body = {"model": "e", "input": ["a", "b"], "encoding_format": form}
    vectors = [np.array([0.5, -1.25]), np.array([0.0, 3.0], dtype=np.float32)]
    made = Embedded(vectors=vectors, prompt_tokens=4, account={"served_by": "edge"})
    document = embeddings_document(read_embedding(json.dumps(body).encode()), made)
    assert document["penstock"] == {"served_by": "edge"}
    if form == "base64":  # the client undoes it before its types look
        for one in document["data"]:
            one["embedding"] = np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist()
    answer = parsed(types.CreateEmbeddingResponse, document)
    assert [one.embedding for one in answer.data] == [[0.5, -1.25], [0.0, 3.0]]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)
