"""Texts over gRPC: requests of OpenAI's API as tensors of the inference protocol, and responses as its chunks.

So both transports give the same to whoever reads an answer (``penstock.sdk.texts``). What tensors cannot say,
alternatives of tokens, is refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any, Protocol

import msgspec
import numpy as np

from penstock.errors import InvalidInput
from penstock.openai.sse import DONE, event_bytes
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array

_SAME = ("finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens", "triton_final_response")


class RpcStreams(Protocol):
    """What is needed of a transport."""

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse: ...
    def stream(self, request: InferRequest, timeout_s: float) -> Generator[InferResponse, None, None]: ...


class AioRpcStreams(Protocol):
    """The same from asyncio."""

    async def infer(self, request: InferRequest, timeout_s: float) -> InferResponse: ...
    async def stream(self, request: InferRequest, timeout_s: float) -> AsyncGenerator[InferResponse, None]: ...


class RpcTexts:
    """Asks for texts through a gRPC transport."""

    def __init__(self, transport: RpcStreams) -> None:
        self._transport = transport

    def post(self, path: str, body: bytes, timeout_s: float, request_id: str) -> bytes:
        asked = _request(body, request_id)
        return msgspec.json.encode(_document(self._transport.infer(asked, timeout_s), asked))

    def stream(self, path: str, body: bytes, timeout_s: float, request_id: str) -> Generator[bytes, None, None]:
        asked = _request(body, request_id)
        return _events(self._transport.stream(asked, timeout_s), asked)


class AioRpcTexts:
    """The same from asyncio."""

    def __init__(self, transport: AioRpcStreams) -> None:
        self._transport = transport

    async def post(self, path: str, body: bytes, timeout_s: float, request_id: str) -> bytes:
        asked = _request(body, request_id)
        return msgspec.json.encode(_document(await self._transport.infer(asked, timeout_s), asked))

    async def stream(self, path: str, body: bytes, timeout_s: float, request_id: str) -> AsyncGenerator[bytes, None]:
        asked = _request(body, request_id)
        return _aio_events(await self._transport.stream(asked, timeout_s), asked)


def _events(responses: Generator[InferResponse, None, None], asked: InferRequest) -> Generator[bytes, None, None]:
    with closing(responses):
        for response in responses:
            yield event_bytes(_document(response, asked))
    yield DONE


async def _aio_events(
    responses: AsyncGenerator[InferResponse, None], asked: InferRequest
) -> AsyncGenerator[bytes, None]:
    async with aclosing(responses):
        async for response in responses:
            yield event_bytes(_document(response, asked))
    yield DONE


def _request(body: bytes, request_id: str) -> InferRequest:
    asked: dict[str, Any] = msgspec.json.decode(body)
    name, _, version = asked.pop("model").partition("@")
    if not version:
        name, _, version = name.partition(":")
    inputs: dict[str, Array] = {}
    match asked.pop("prompt", None), asked.pop("messages", None):
        case str(text), None:
            inputs["text_input"] = np.array([text.encode()], object)
        case list(ids), None:
            inputs["prompt_ids"] = np.array([ids], np.int64)
        case _, messages:
            inputs["messages"] = np.array([msgspec.json.encode(messages)], object)
    parameters = asked.pop("penstock", {})
    for name_of_stream in ("stream", "stream_options", "return_tokens_as_token_ids"):
        asked.pop(name_of_stream, None)
    if "logprobs" in asked:
        count = asked.pop("top_logprobs", None) if asked["logprobs"] is True else asked["logprobs"]
        if count:
            raise InvalidInput("logprobs: alternatives are told over http:// only; ask for 0", field="logprobs")
        asked["logprobs"] = True
    inputs["sampling_parameters"] = np.array([msgspec.json.encode(asked)], object)
    return InferRequest(model=name, version=version, id=request_id, inputs=inputs, parameters=parameters)


def _document(response: InferResponse, asked: InferRequest) -> dict[str, Any]:
    outputs, said = response.outputs, dict(response.parameters)
    finish = said.get("finish_reason")
    choice: dict[str, Any] = {
        "text": bytes(outputs["text_output"].ravel()[0]).decode(),
        "token_ids": outputs["token_ids"].ravel().tolist(),
        "finish_reason": finish,
    }
    if "logprobs" in outputs:
        choice["logprobs"] = {"token_logprobs": outputs["logprobs"].ravel().tolist()}
    document: dict[str, Any] = {
        "id": response.id,
        "model": _model(asked),
        "system_fingerprint": response.version,
        "choices": [choice],
    }
    if finish is not None:
        document["usage"] = {name: said[name] for name in ("prompt_tokens", "completion_tokens")} | {
            "prompt_tokens_details": {"cached_tokens": said.get("cached_tokens", 0)}
        }
        document["penstock"] = {name: value for name, value in said.items() if name not in _SAME}
    return document


def _model(asked: InferRequest) -> str:
    """Return the model as OpenAI's API names one, as it was asked for."""
    if not asked.version:
        return asked.model
    return f"{asked.model}@{asked.version}" if ":" in asked.version else f"{asked.model}:{asked.version}"
