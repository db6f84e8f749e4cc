"""What requests of both kinds say about how an answer is made: sampling, limits, stop strings, grammar.

Reads and checks; what a model or an engine can take is theirs to know. Values in the error messages are those of
OpenAI's API where it has the field, and of vLLM's where only that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from penstock.errors import InvalidInput
from penstock.generation.stop_strings import check_stops
from penstock.generation.values import Grammar, Sampling
from penstock.openai.json_body import convert
from penstock.wire.inference import Parameter

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**63 - 1
_MAX_CHOICES_OF_GRAMMAR = 1024

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """Options of a stream; others that clients send change nothing here."""

    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Fields that say how an answer is made, in every API. None is a field that was not sent, or null."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] | None = None
    max_tokens: Count | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    return_token_ids: bool | None = None


class DecodingFields(SamplingFields, kw_only=True):
    """Fields that OpenAI's chats and completions share.

    Attributes:
        model: a name, ``name:tag`` or ``name@digest``.
        penstock: extensions of ours, such as ``local_only``.
    """

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = None
    penstock: dict[str, bool | int | float | str] | None = None


def sampling_of(fields: SamplingFields) -> Sampling | None:
    """Return how tokens are drawn; None for the model's own way, which its certificate is about.

    Nothing but a temperature leaves the model's own way: it is greedy, and ``top_p``, ``top_k``, ``min_p`` and
    ``seed`` change nothing where the likeliest token is taken. Penalties and biases do change which one that is.
    """
    bias = _biases(fields.logit_bias or {})
    changes = fields.repetition_penalty or 1.0, fields.presence_penalty or 0.0, fields.frequency_penalty or 0.0
    if fields.temperature is None and not bias and changes == (1.0, 0.0, 0.0):
        return None
    return Sampling(
        temperature=fields.temperature or 0.0,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=max(0, fields.top_k or 0),  # vLLM writes -1 for all
        min_p=fields.min_p or 0.0,
        repetition_penalty=changes[0],
        presence_penalty=changes[1],
        frequency_penalty=changes[2],
        seed=fields.seed,
        logit_bias=bias,
    )


def seeded(sampling: Sampling | None, choice: int) -> Sampling | None:
    """Return the sampling of one of several answers to a prompt: a named seed, and the next ones for the others."""
    if sampling is None or sampling.seed is None or choice == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + choice) % (MAX_SEED + 1))


def stops_of(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Return the strings that end an answer; None for the model's own.

    Raises:
        InvalidInput: too many, too long, or an empty one.
    """
    if stop is None:
        return None
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    check_stops(stops)
    return stops


def grammar_of(fields: SamplingFields) -> Grammar | None:
    """Return what the answer has to look like, from ``response_format`` or vLLM's ``structured_outputs``.

    Raises:
        InvalidInput: a type that is not known, a schema that is missing, or both fields.
    """
    asked = _response_format(fields.response_format) if fields.response_format is not None else None
    if fields.structured_outputs is None:
        return asked
    if asked is not None:
        raise InvalidInput(
            "structured_outputs: response_format says already what the answer looks like; send one of them",
            field="structured_outputs",
        )
    return _structured_outputs(fields.structured_outputs)


def check_stream(fields: DecodingFields) -> None:
    """Refuse options of a stream where none is asked for.

    Raises:
        InvalidInput: ``stream_options`` without ``stream``.
    """
    if fields.stream_options is not None and not fields.stream:
        raise InvalidInput("stream_options: only with stream: true", field="stream_options")


def parameters_of(fields: DecodingFields) -> Mapping[str, Parameter]:
    """Return our extensions as the parameters of any other request."""
    return fields.penstock or {}


def model_of(written: str) -> tuple[str, str]:
    """Take ``name``, ``name:tag`` or ``name@digest`` apart; the version is "" where none is named.

    Raises:
        InvalidInput: the name or the version is empty.
    """
    name, separator, version = written.partition("@")
    if not separator:
        name, separator, version = written.partition(":")
    if not name or (separator and not version):
        raise InvalidInput(f"model: {written!r} is no NAME, NAME:TAG or NAME@DIGEST", field="model")
    return name, version


def _biases(written: Mapping[str, float]) -> dict[int, float]:
    if len(written) > MAX_BIASES:
        raise InvalidInput(f"logit_bias: {len(written)} tokens; at most {MAX_BIASES} are possible", field="logit_bias")
    for name in written:
        if not (name.isascii() and name.isdigit() and len(name) <= 10):
            raise InvalidInput(f"logit_bias: {name[:40]!r} is no token id; expected digits", field="logit_bias")
    biases = {int(name): float(bias) for name, bias in written.items()}
    if len(biases) < len(written):
        raise InvalidInput("logit_bias: one token is named twice, once with zeros before it", field="logit_bias")
    return {token: bias for token, bias in biases.items() if bias}


def _response_format(document: Mapping[str, Any]) -> Grammar | None:
    match document.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar(kind="json_schema", text='{"type":"object"}')
        case "json_schema":
            field = "response_format.json_schema"
            described = convert(document.get("json_schema"), dict[str, Any], field=field)
            if "schema" not in described:
                raise InvalidInput(f"{field}.schema: missing", field=f"{field}.schema")
            return _schema(described["schema"], f"{field}.schema")
        case other:
            raise InvalidInput(
                f"response_format.type: {str(other)[:40]!r}; expected text, json_object or json_schema",
                field="response_format.type",
            )


def _structured_outputs(document: Mapping[str, Any]) -> Grammar:
    field = "structured_outputs"
    kinds = [kind for kind in document if document[kind] is not None]
    if len(kinds) != 1 or kinds[0] not in ("json", "regex", "choice"):
        raise InvalidInput(f"{field}: expected one of json, regex and choice", field=field)
    value, where = document[kinds[0]], f"{field}.{kinds[0]}"
    match kinds[0]:
        case "json":
            return _schema(value, where)
        case "regex":
            return Grammar(kind="regex", text=convert(value, str, field=where))
        case _:
            options = convert(value, list[str], field=where)
            if not 1 <= len(options) <= _MAX_CHOICES_OF_GRAMMAR or not all(options):
                raise InvalidInput(
                    f"{where}: expected 1 to {_MAX_CHOICES_OF_GRAMMAR} strings that are not empty", field=where
                )
            return Grammar(kind="choice", text=msgspec.json.encode(options).decode())


def _schema(schema: object, field: str) -> Grammar:
    return Grammar(kind="json_schema", text=msgspec.json.encode(convert(schema, dict[str, Any], field=field)).decode())
