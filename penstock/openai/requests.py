"""Read requests for texts and turn them into values: which model, which prompts, and one TextRequest for each answer.

Fields fall in three classes. What is known is checked. What is known elsewhere and would change the answer is refused
in a sentence (``_REFUSED``), since an answer to another question is worse than none. What remains changes nothing
here: it is ignored, and its name is told with the answer. No tokenizer is needed; ids are checked against a
vocabulary later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from penstock.errors import InvalidInput
from penstock.generation.plane import Chat, TextRequest
from penstock.openai.decoding_fields import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Count,
    DecodingFields,
    check_stream,
    grammar_of,
    model_of,
    parameters_of,
    sampling_of,
    seeded,
    stops_of,
)
from penstock.openai.field_names import Names, grammar_names, prompt_names
from penstock.openai.json_body import convert, read_object, unknown_names
from penstock.openai.messages import Message, chat_of

Prompt = str | tuple[int, ...] | Chat

_MAX_ID = 2**31 - 1
_TokenId = Annotated[int, msgspec.Meta(ge=0, le=_MAX_ID)]

# fields that change nothing here, though others read them
_HARMLESS = frozenset(
    {
        "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
    }
)  # fmt: skip

# fields of OpenAI's and vLLM's that would change the answer, and the values with which they do not
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


# how a client of each kind calls what is checked elsewhere
_OWN_NAMES: Mapping[str, Names] = {
    "chat": prompt_names("messages"),
    "completion": {**prompt_names("prompt"), "top_logprobs": "logprobs"},
}


class _ChatFields(DecodingFields, kw_only=True):
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class _CompletionFields(DecodingFields, kw_only=True):
    prompt: Any = None
    best_of: int | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A decoded request for one or several answers.

    Attributes:
        kind: which of the two shapes is wanted.
        model: as the client wrote it, which answers repeat.
        requests: one for each choice, in the order of their indices: all answers to the first prompt come first.
        n: answers to each prompt.
        is_stream: answer in parts.
        include_usage: end a stream with a chunk that has the usage.
        return_token_ids: tell ids beside texts, in vLLM's fields.
        names_by_id: name tokens by their ids where log-probabilities are told.
        ignored: names of fields that were sent and are not read.
        names: of the fields that were sent, for errors about the first answer; see :meth:`names_of`.
        has_list: the prompts are a list, so that each has a place in it.
    """

    kind: Literal["chat", "completion"]
    model: str
    requests: tuple[TextRequest, ...]
    n: int
    is_stream: bool
    include_usage: bool
    return_token_ids: bool
    names_by_id: bool
    ignored: tuple[str, ...]
    names: Names
    has_list: bool

    @property
    def has_logprobs(self) -> bool:
        """Say whether log-probabilities are told with the answers."""
        return self.requests[0].top_logprobs is not None

    def names_of(self, index: int) -> Names:
        """Return the names of the fields that were sent, for errors about one answer."""
        return {**self.names, **prompt_names(f"prompt[{index // self.n}]")} if self.has_list else self.names

    def is_first_of_prompt(self, index: int) -> bool:
        """Say whether a choice is the one with which its prompt's tokens are counted."""
        return index % self.n == 0


def read_chat(body: bytes) -> Call:
    """Read the body of ``POST /v1/chat/completions``.

    Raises:
        InvalidInput: wrong in any way; ``field`` is the part that is.
    """
    document = _document(body)
    fields = convert(document, _ChatFields)
    if fields.max_tokens is not None and fields.max_completion_tokens is not None:
        raise InvalidInput(
            "max_completion_tokens: the new name of max_tokens, which is sent too; send one of them",
            field="max_completion_tokens",
        )
    if fields.top_logprobs is not None and not fields.logprobs:
        raise InvalidInput("top_logprobs: only with logprobs: true", field="top_logprobs")
    limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    chat = chat_of(fields.messages, fields.tools, fields.tool_choice)
    return _call(
        document, fields, kind="chat", prompts=(chat,), limit=limit,
        top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
    )  # fmt: skip


def read_completion(body: bytes) -> Call:
    """Read the body of ``POST /v1/completions``.

    Raises:
        InvalidInput: wrong in any way; ``field`` is the part that is.
    """
    document = _document(body)
    fields = convert(document, _CompletionFields)
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise InvalidInput("best_of: answers are not ranked here; leave it out, or send n", field="best_of")
    return _call(
        document, fields, kind="completion", prompts=prompts_of(fields.prompt, field="prompt"),
        limit=fields.max_tokens, top_logprobs=fields.logprobs,
    )  # fmt: skip


def prompts_of(
    value: object, *, field: str, most: int = MAX_CHOICES, why: str = "a model continues at least one token"
) -> tuple[str | tuple[int, ...], ...]:
    """Read a text, a list of texts, token ids, or a list of lists of them.

    Args:
        most: in one request.
        why: none may be empty.

    Raises:
        InvalidInput: something else, an empty one, or more than ``most``.
    """
    prompts: tuple[str | tuple[int, ...], ...]
    match value:
        case str():
            prompts = (value,)
        case [int(), *_]:
            prompts = (tuple(convert(value, list[_TokenId], field=field)),)
        case [list(), *_]:
            prompts = tuple(tuple(ids) for ids in convert(value, list[list[_TokenId]], field=field))
        case [_, *_]:
            prompts = tuple(convert(value, list[str], field=field))
        case _:
            raise InvalidInput(f"{field}: missing or empty; expected a text, token ids, or a list of them", field=field)
    if len(prompts) > most:
        raise InvalidInput(f"{field}: {len(prompts)}; at most {most} in one request", field=field)
    for index, prompt in enumerate(prompts):
        if not prompt:
            where = field if isinstance(value, str) else f"{field}[{index}]"
            raise InvalidInput(f"{where}: empty; {why}", field=where)
    return prompts


def check_refused(document: Mapping[str, object], *, where: str = "") -> None:
    """Look for fields that are known elsewhere and would change the answer, in requests of any API.

    Args:
        where: what goes before a field's name in the error.

    Raises:
        InvalidInput: there is one, with a value that changes something.
    """
    for name, same in _REFUSED.items():
        value = document.get(name)
        if value is not None and value not in same:
            raise InvalidInput(
                f"{where}{name}: not done here, and the answer would be another one; leave it out", field=where + name
            )


def _document(body: bytes) -> dict[str, Any]:
    document = read_object(body)
    check_refused(document)
    return document


def _call(
    document: Mapping[str, Any],
    fields: DecodingFields,
    *,
    kind: Literal["chat", "completion"],
    prompts: Sequence[Prompt],
    limit: int | None,
    top_logprobs: int | None,
) -> Call:
    check_stream(fields)
    n = fields.n or 1
    if n * len(prompts) > MAX_CHOICES:
        raise InvalidInput(
            f"n: {n} answers to {len(prompts)} prompts; at most {MAX_CHOICES} answers in one request", field="n"
        )
    options = fields.stream_options
    known = {*msgspec.structs.asdict(fields), *_REFUSED, *_HARMLESS}
    make = _maker(fields, limit, top_logprobs)
    return Call(
        kind=kind,
        model=fields.model,
        requests=tuple(make(prompt, choice) for prompt in prompts for choice in range(n)),
        n=n,
        is_stream=fields.stream or False,
        include_usage=options is not None and (options.include_usage or False),
        return_token_ids=fields.return_token_ids or False,
        names_by_id=fields.return_tokens_as_token_ids or False,
        ignored=unknown_names(document, known),
        names={**grammar_names(fields), **_OWN_NAMES[kind], **_limit_name(document)},
        has_list=kind == "completion" and _is_list_of_prompts(document["prompt"]),
    )


def _limit_name(document: Mapping[str, Any]) -> Names:
    return {"max_tokens": "max_completion_tokens"} if document.get("max_completion_tokens") is not None else {}


def _is_list_of_prompts(prompt: object) -> bool:
    return isinstance(prompt, list) and not isinstance(prompt[0], int)


def _maker(fields: DecodingFields, limit: int | None, top_logprobs: int | None) -> Callable[[Prompt, int], TextRequest]:
    """Return what makes the request for one answer, from a prompt and the answer's number among those to it."""
    name, version = model_of(fields.model)
    sampling, stop, grammar = sampling_of(fields), stops_of(fields.stop), grammar_of(fields)

    def make(prompt: Prompt, choice: int) -> TextRequest:
        return TextRequest(
            model=name,
            version=version,
            prompt=prompt,
            max_new_tokens=limit,
            sampling=seeded(sampling, choice),
            stop=stop,
            top_logprobs=top_logprobs,
            grammar=grammar,
            parameters=parameters_of(fields),
        )

    return make
