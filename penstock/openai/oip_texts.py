"""Requests for texts in the Open Inference Protocol's two forms: the generate extension's JSON, and tensors.

What is asked of an answer is read by the same checks as OpenAI's fields; their names are parameters here. Tensors
follow the convention of Triton's backends for language models. Knows no transport.
Source: Triton Inference Server, "Generate Extension"; its vLLM backend's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import numpy as np

from penstock.errors import InvalidInput
from penstock.generation.plane import Chat, TextRequest
from penstock.generation.values import TokenEvent
from penstock.openai.answers import broken_off, finish_reason_of, usage_of
from penstock.openai.decoding_fields import MAX_TOP_LOGPROBS, SamplingFields, grammar_of, sampling_of, stops_of
from penstock.openai.field_names import Names, grammar_names, prompt_names
from penstock.openai.json_body import convert, read_object, unknown_names
from penstock.openai.logprobs import TokenBytes, chat_entry, written
from penstock.openai.messages import Message, chat_of
from penstock.openai.requests import check_refused
from penstock.wire.inference import InferRequest, Parameter
from penstock.wire.tensors import Array, TensorSpec, datatype_of

_EXTENSIONS = ("timeout", "priority", "local_only")
# how a stream is asked for is the path's or the method's; what Triton's own clients say of theirs changes no answer
_HARMLESS = (*_EXTENSIONS, "stream", "streaming", "triton_enable_empty_final_response", "exclude_input_in_output")
INPUTS = (
    TensorSpec(name="text_input", datatype="BYTES", shape=(1,)),
    TensorSpec(name="prompt_ids", datatype="INT64", shape=(1, -1)),
    TensorSpec(name="messages", datatype="BYTES", shape=(1,)),
    TensorSpec(name="sampling_parameters", datatype="BYTES", shape=(1,)),
    TensorSpec(name="streaming", datatype="BOOL", shape=(1,)),
)
"""What metadata say that a language model takes: one of the first three, and the others if the client likes."""

OUTPUTS = (
    TensorSpec(name="text_output", datatype="BYTES", shape=(1,)),
    TensorSpec(name="token_ids", datatype="INT64", shape=(1, -1)),
    TensorSpec(name="logprobs", datatype="FP32", shape=(1, -1)),
)
"""What a response adds to an answer; ``logprobs`` where they are asked for."""

_PROMPTS = ("text_input", "prompt_ids", "messages")
_KINDS: Mapping[str, str] = {**{one.name: one.datatype for one in INPUTS}, "stream": "BOOL"}
_OUTPUTS = tuple(one.name for one in OUTPUTS)


class _Parameters(SamplingFields, kw_only=True):
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class _Body(msgspec.Struct, kw_only=True):
    text_input: str
    id: str = ""
    parameters: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAsk:
    """A decoded request for one text.

    Attributes:
        id: as the client gave it, which answers repeat.
        is_stream: whether parts are wanted; None where the request does not say.
        return_token_ids: tell ids beside texts, in JSON.
        outputs: tensors that are wanted, in order; empty for all.
        ignored: names of parameters that are not read.
        names: of the fields and parameters that were sent, for errors.
    """

    id: str
    request: TextRequest
    is_stream: bool | None = None
    return_token_ids: bool = False
    outputs: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    names: Names = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one part of an answer is written from.

    Attributes:
        events: at least one; all of them where the answer is whole.
        version: what answers, as far as it is known.
        account: as in :class:`penstock.generation.plane.TextAnswer`; read with the last event only.
    """

    events: Sequence[TokenEvent]
    version: str
    token_bytes: TokenBytes
    account: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Join what the events say."""
        return "".join(event.text for event in self.events)


def read_generate(body: bytes, *, model: str, version: str) -> TextAsk:
    """Read the body of ``/generate`` and ``/generate_stream``. Fields beside the three that the protocol names are
    parameters, as they are for Triton.

    Raises:
        InvalidInput: wrong in any way; ``field`` is the part that is.
    """
    document = read_object(body)
    fields = convert(document, _Body)
    others = {name: value for name, value in document.items() if name not in ("text_input", "id", "parameters")}
    if twice := sorted(others.keys() & fields.parameters.keys()):
        raise InvalidInput(f"{twice[0]}: stands beside the parameters and in them; send it once", field=twice[0])
    if not fields.text_input:
        raise InvalidInput("text_input: empty; a model continues at least one token", field="text_input")
    return _ask(model, version, fields.id, fields.text_input, others | fields.parameters)


def read_tensors(request: InferRequest) -> TextAsk:
    """Read a request whose prompt is a tensor: ``text_input`` BYTES, ``prompt_ids`` INT64, or ``messages`` BYTES, a
    conversation as JSON, as OpenAI has it; one prompt.

    ``sampling_parameters`` BYTES is a JSON object of further parameters, for those that are more than a number or a
    text; ``streaming`` BOOL (or ``stream``, as vLLM's backend names it) asks for parts or for one whole answer.

    Raises:
        InvalidInput: wrong in any way; ``field`` is the part that is.
    """
    inputs = request.inputs
    for name, array in inputs.items():
        _check_input(name, array)
    if sum(name in inputs for name in _PROMPTS) != 1:
        raise InvalidInput(f"inputs: a language model takes one of {', '.join(_PROMPTS)}", field="inputs")
    if strangers := [name for name in request.outputs if name not in _OUTPUTS]:
        raise InvalidInput(f"outputs: no output {strangers[0]!r}; known: {', '.join(_OUTPUTS)}", field="outputs")
    parameters: dict[str, Any] = dict(request.parameters)
    if "sampling_parameters" in inputs:
        more = _object(inputs["sampling_parameters"], "sampling_parameters")
        if twice := sorted(more.keys() & parameters.keys()):
            raise InvalidInput(
                f"{twice[0]}: stands among the parameters and in sampling_parameters; send it once", field=twice[0]
            )
        parameters |= more
    if "logprobs" in request.outputs:
        parameters.setdefault("logprobs", True)
    prompt: str | tuple[int, ...] | Chat
    if "text_input" in inputs:
        prompt = _text(inputs["text_input"], "text_input")
    elif "messages" in inputs:
        prompt = _conversation(_text(inputs["messages"], "messages"), parameters.pop("tools", None))
    else:
        prompt = tuple(inputs["prompt_ids"].ravel().tolist())
    if not prompt:
        raise InvalidInput("inputs: the prompt is empty; a model continues at least one token", field="inputs")
    said = [bool(inputs[name].ravel()[0]) for name in ("streaming", "stream") if name in inputs]
    said += [value for name in ("streaming", "stream") if isinstance(value := parameters.get(name), bool)]
    ask = _ask(request.model, request.version, request.id, prompt, parameters)
    return replace(ask, is_stream=said[0] if said else None, outputs=request.outputs)


def generate_document(ask: TextAsk, told: Told) -> dict[str, Any]:
    """Write an answer of the generate extension, whole or in part.

    ``finish_reason`` is null in a part that is not the last; the last one, and a whole answer, have ``usage`` and
    ``parameters``, too: who answered, and why.

    Raises:
        Unavailable: the answer did not come to an end of its own.
    """
    last = _last(told)
    document: dict[str, Any] = {"id": ask.id} if ask.id else {}
    document |= {
        "model_name": ask.request.model,
        "model_version": told.version,
        "text_output": told.text,
        "finish_reason": None if last.finish is None else finish_reason_of(last),
    }
    if ask.return_token_ids:
        document["token_ids"] = [event.token for event in told.events]
    if ask.request.top_logprobs is not None:
        document["logprobs"] = [chat_entry(event, told.token_bytes) for event in told.events]
    if last.finish is not None:
        usage = usage_of(last)
        document["stop_reason"] = last.matched_stop
        document["usage"] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        document["parameters"] = _account(ask, told)
    return document


def has_news(ask: TextAsk, event: TokenEvent) -> bool:
    """Say whether a part of the generate extension's stream has to be written for an event."""
    asked = ask.return_token_ids or ask.request.top_logprobs is not None
    return bool(event.text) or asked or event.finish is not None


def text_tensors(ask: TextAsk, told: Told) -> dict[str, Array]:
    """Make the outputs of an answer, whole or in part: ``text_output`` BYTES [1], ``token_ids`` INT64 [1, tokens], and
    ``logprobs`` FP32 [1, tokens] where they were asked for."""
    outputs: dict[str, Array] = {
        "text_output": np.array([told.text.encode()], object),
        "token_ids": np.array([[event.token for event in told.events]], np.int64),
    }
    if ask.request.top_logprobs is not None:
        outputs["logprobs"] = np.array([[written(event.logprob) for event in told.events]], np.float32)
    return {name: outputs[name] for name in ask.outputs or outputs}


def text_parameters(ask: TextAsk, told: Told) -> dict[str, Parameter]:
    """Say beside tensors why an answer ended, what it took, and who gave it; nothing with a part before the last.

    Raises:
        Unavailable: the answer did not come to an end of its own.
    """
    last = _last(told)
    if last.finish is None:
        return {}
    usage = usage_of(last)
    return {
        "finish_reason": finish_reason_of(last),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        **_account(ask, told),
    }


def _conversation(text: str, tools: object) -> Chat:
    # read as part of an object, for the checks of all of our JSON
    document = read_object(b'{"messages":' + text.encode() + b"}")
    described = None if tools is None else convert(tools, list[dict[str, Any]], field="tools")
    return chat_of(convert(document["messages"], list[Message], field="messages"), described, None)


def _ask(model: str, version: str, id: str, prompt: str | tuple[int, ...] | Chat, asked: Mapping[str, Any]) -> TextAsk:
    check_refused(asked, where="parameters.")
    if asked.get("exclude_input_in_output") is False:
        raise InvalidInput(
            "parameters.exclude_input_in_output: an answer never repeats its prompt here; leave it out",
            field="parameters.exclude_input_in_output",
        )
    if "max_new_tokens" in asked:
        raise InvalidInput("parameters.max_new_tokens: it is called max_tokens here", field="parameters.max_new_tokens")
    fields = convert(asked, _Parameters, field="parameters")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise InvalidInput("parameters.top_logprobs: only with logprobs: true", field="parameters.top_logprobs")
    extensions: dict[str, Parameter] = {
        name: convert(asked[name], Parameter, field=f"parameters.{name}")  # type: ignore[arg-type]  # a union is a type
        for name in _EXTENSIONS
        if name in asked
    }
    return TextAsk(
        id=id,
        request=TextRequest(
            model=model,
            version=version,
            prompt=prompt,
            max_new_tokens=fields.max_tokens,
            sampling=sampling_of(fields),
            stop=stops_of(fields.stop),
            top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
            grammar=grammar_of(fields),
            parameters=extensions,
        ),
        return_token_ids=fields.return_token_ids or False,
        ignored=unknown_names(asked, {*msgspec.structs.asdict(fields), *_HARMLESS}),
        names={
            **{name: f"parameters.{name}" for name in (*fields.__struct_fields__, "options")},
            **{name: f"parameters.{sent}" for name, sent in grammar_names(fields).items()},
            **prompt_names(_sent_as(prompt)),
        },
    )


def _sent_as(prompt: str | tuple[int, ...] | Chat) -> str:
    return "text_input" if isinstance(prompt, str) else "messages" if isinstance(prompt, Chat) else "prompt_ids"


def _check_input(name: str, array: Array) -> None:
    where, wanted = f"inputs.{name}", _KINDS.get(name)
    if wanted is None:
        raise InvalidInput(f"{where}: a language model takes {', '.join(_KINDS)}", field=where)
    if datatype_of(array, field=where) != wanted:
        raise InvalidInput(f"{where}: {datatype_of(array, field=where)}; expected {wanted}", field=where)
    rows = array.shape[:-1] if name == "prompt_ids" else array.shape
    if any(size != 1 for size in rows):
        raise InvalidInput(f"{where}: shape {list(array.shape)}; a request has one prompt", field=where)


def _text(array: Array, name: str) -> str:
    value = array.ravel()[0]
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"inputs.{name}: not UTF-8 at byte {error.start}", field=f"inputs.{name}") from None


def _object(array: Array, name: str) -> dict[str, Any]:
    text = _text(array, name)
    try:
        return read_object(text.encode())
    except InvalidInput as error:
        said = error.message.removeprefix("body: ")
        raise InvalidInput(f"inputs.{name}: {said}", field=f"inputs.{name}") from None


def _last(told: Told) -> TokenEvent:
    if not told.events:
        raise broken_off()
    return told.events[-1]


def _account(ask: TextAsk, told: Told) -> dict[str, Parameter]:
    return {**told.account, "ignored": ", ".join(ask.ignored)} if ask.ignored else dict(told.account)
