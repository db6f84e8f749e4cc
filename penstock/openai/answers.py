"""Answers in OpenAI's shapes, whole and in chunks, from the events of a generation.

Each answer carries one object that is ours, ``penstock``: who answered, how sure, against which threshold, by which
certificate and why. It stands in the answer, or in the last chunk; where a request has several answers, beside each
of them. Knows no transport: chunks become bytes in ``penstock.openai.sse``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import Unavailable
from penstock.generation.plane import TextModel
from penstock.generation.values import TokenEvent, Usage
from penstock.openai.logprobs import CompletionLogprobs, TokenBytes, chat_entry, joined
from penstock.openai.requests import Call
from penstock.wire.inference import Parameter

OWNER = "penstock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every answer and chunk of one request begins with.

    Attributes:
        id: of the answer, made by the caller.
        created: seconds since 1970.
        fingerprint: changes with what answers; None where nobody knows.
    """

    id: str
    created: int
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One answer that was read to its end.

    Attributes:
        events: all of them; the last has finish and usage.
        account: as in :class:`penstock.generation.plane.TextAnswer`.
    """

    events: Sequence[TokenEvent]
    prompt_ids: Sequence[int]
    token_bytes: TokenBytes
    account: Mapping[str, Parameter]


def answer_document(call: Call, head: Head, finished: Sequence[Finished]) -> dict[str, Any]:
    """Write a whole answer; ``finished`` has one entry for each choice, in order.

    Raises:
        Unavailable: one of them did not come to an end of its own.
    """
    if not all(one.events for one in finished):
        raise broken_off()
    lone = len(finished) == 1
    document = _head(call, head, "chat.completion" if call.kind == "chat" else "text_completion")
    document["choices"] = [_choice(call, index, one, is_lone=lone) for index, one in enumerate(finished)]
    document["usage"] = usage_document(call, [usage_of(one.events[-1]) for one in finished])
    if call.return_token_ids and call.kind == "chat":
        document["prompt_token_ids"] = list(finished[0].prompt_ids)
    return document | (_account(call, finished[0].account) if lone else {})


class Chunks:
    """Writes the chunks of one request's stream, whose choices may come in any order. Holds no text."""

    def __init__(self, call: Call, head: Head) -> None:
        self._call, self._head = call, head
        self._usages: dict[int, Usage] = {}
        self._logprobs = [CompletionLogprobs(by_id=call.names_by_id) for _ in call.requests]

    def first(self, index: int, prompt_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Write what a choice begins with: the role of a chat; ids where they were asked for."""
        call = self._call
        ids = {"prompt_token_ids": list(prompt_ids)} if call.return_token_ids else {}
        if call.kind == "chat":
            return [self._chunk(index, {"delta": {"role": "assistant", "content": ""}}) | ids]
        return [self._chunk(index, {"text": "", **ids})] if ids else []

    def next(
        self, index: int, event: TokenEvent, token_bytes: TokenBytes, account: Mapping[str, Parameter]
    ) -> list[dict[str, Any]]:
        """Write what one event of a choice says; nothing where it has nothing to say yet.

        Args:
            account: read with the last event only.

        Raises:
            Unavailable: the event ends the answer, and not by an end of its own.
        """
        call = self._call
        chunks: list[dict[str, Any]] = []
        said: dict[str, Any]
        extra: dict[str, Any] = {"token_ids": [event.token]} if call.return_token_ids else {}
        if call.has_logprobs:
            extra["logprobs"] = (
                {"content": [chat_entry(event, token_bytes, by_id=call.names_by_id)], "refusal": None}
                if call.kind == "chat"
                else self._logprobs[index].add(event, token_bytes)
            )
        is_chat = call.kind == "chat"
        said = {"delta": {"content": event.text}} if is_chat else {"text": event.text}
        # a chat's end is a chunk of its own, as OpenAI has it; a completion's comes with its last token, as readers of
        # ids want it
        if (event.text or extra) and (is_chat or event.finish is None):
            chunks.append(self._chunk(index, said | extra))
        if event.finish is not None:
            self._usages[index] = usage_of(event)
            said = {"delta": {}} if is_chat else said | extra
            end = {"finish_reason": finish_reason_of(event), "stop_reason": event.matched_stop}
            ours = _account(call, account)
            is_lone = len(call.requests) == 1
            chunks.append(self._chunk(index, said | end | ({} if is_lone else ours)) | (ours if is_lone else {}))
        return chunks

    def end(self) -> list[dict[str, Any]]:
        """Write the usage after the last choice's end, where it was asked for.

        Raises:
            Unavailable: a choice has not ended.
        """
        usages = [usage for _, usage in sorted(self._usages.items())]
        if len(usages) < len(self._call.requests):
            raise broken_off()
        if not self._call.include_usage:
            return []
        return [{**self._begin(), "choices": [], "usage": usage_document(self._call, usages)}]

    def _begin(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._call.kind == "chat" else "text_completion"
        return _head(self._call, self._head, kind)

    def _chunk(self, index: int, choice: dict[str, Any]) -> dict[str, Any]:
        whole = {"index": index, "logprobs": None, "finish_reason": None, **choice}
        usage = {"usage": None} if self._call.include_usage else {}
        return {**self._begin(), "choices": [whole], **usage}


def usage_document(call: Call, usages: Sequence[Usage]) -> dict[str, Any]:
    """Sum up what a request took. A prompt counts once, however many answers it has."""
    prompts = [usage for index, usage in enumerate(usages) if call.is_first_of_prompt(index)]
    prompt, cached = sum(u.prompt_tokens for u in prompts), sum(u.cached_tokens for u in prompts)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def model_document(model: TextModel) -> dict[str, Any]:
    """Describe one model, with its context where vLLM's clients look for it."""
    context = {"max_model_len": model.context_tokens} if model.context_tokens else {}
    return {"id": model.name, "object": "model", "created": model.created_at, "owned_by": OWNER, **context}


def models_document(models: Sequence[TextModel]) -> dict[str, Any]:
    """List models by name; versions are no models of their own here."""
    by_name = {model.name: model for model in reversed(models)}
    return {"object": "list", "data": [model_document(by_name[name]) for name in sorted(by_name)]}


def _head(call: Call, head: Head, kind: str) -> dict[str, Any]:
    return {
        "id": head.id, "object": kind, "created": head.created, "model": call.model,
        "system_fingerprint": head.fingerprint,
    }  # fmt: skip


def _choice(call: Call, index: int, one: Finished, *, is_lone: bool) -> dict[str, Any]:
    last = one.events[-1]
    text = "".join(event.text for event in one.events)
    choice: dict[str, Any] = {
        "index": index, "logprobs": None, "finish_reason": finish_reason_of(last), "stop_reason": last.matched_stop,
    }  # fmt: skip
    if call.kind == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        if call.has_logprobs:
            entries = [chat_entry(event, one.token_bytes, by_id=call.names_by_id) for event in one.events]
            choice["logprobs"] = {"content": entries, "refusal": None}
    else:
        choice["text"] = text
        if call.has_logprobs:
            lists = CompletionLogprobs(by_id=call.names_by_id)
            choice["logprobs"] = joined([lists.add(event, one.token_bytes) for event in one.events])
    if call.return_token_ids:
        choice["token_ids"] = [event.token for event in one.events]
        if call.kind == "completion":
            choice["prompt_token_ids"] = list(one.prompt_ids)
    return choice | ({} if is_lone else _account(call, one.account))


def _account(call: Call, account: Mapping[str, Parameter]) -> dict[str, Any]:
    ours = {**account, "ignored": ", ".join(call.ignored)} if call.ignored else dict(account)
    return {OWNER: ours} if ours else {}


def finish_reason_of(event: TokenEvent) -> str:
    """Say why an answer ended.

    Raises:
        Unavailable: it did not come to an end of its own.
    """
    if event.finish in ("stop", "length"):
        return event.finish
    raise Unavailable("the answer was given up before its end; ask again", retry_after_s=1.0)


def usage_of(event: TokenEvent) -> Usage:
    """Return what an answer took, from its last event.

    Raises:
        Unavailable: that was not its last.
    """
    if event.usage is None:
        raise broken_off()
    return event.usage


def broken_off() -> Unavailable:
    """Return the error of an answer that has no end."""
    return Unavailable("the answer broke off before its end; ask again", retry_after_s=1.0)
