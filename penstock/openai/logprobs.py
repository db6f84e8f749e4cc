"""Log-probabilities in the two shapes of OpenAI's API: entries of a chat, parallel lists of a completion.

A token is not always text: half a character has bytes and no text of its own. Chats tell both; completions know text
only, so that such a token is written as OpenAI writes it there, ``bytes:\\xe2\\x80``, and stays distinguishable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.generation.values import TokenEvent

LOWEST = -9999.0
"""Stands for a probability of 0, whose logarithm JSON cannot write."""

TokenBytes = Callable[[int], bytes]


def chat_entry(event: TokenEvent, token_bytes: TokenBytes, *, by_id: bool = False) -> dict[str, Any]:
    """Write one token of a chat, with as many alternatives as the event has.

    Args:
        by_id: name tokens by their ids, as vLLM does where it is asked to.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(token)
        name = _id_name(token) if by_id else data.decode("utf-8", "replace")
        return {"token": name, "bytes": list(data), "logprob": written(logprob)}

    top = [entry(token, logprob) for token, logprob in event.top]
    return {**entry(event.token, event.logprob), "top_logprobs": top}


class CompletionLogprobs:
    """The parallel lists of one answer; what is added comes back as the lists of one chunk.

    Attributes:
        characters: of the answer before the next token; a character belongs to the token that begins it.
    """

    def __init__(self, *, by_id: bool = False) -> None:
        """``by_id``: name tokens by their ids, as vLLM does where it is asked to."""
        self._by_id = by_id
        self.characters = 0

    def add(self, event: TokenEvent, token_bytes: TokenBytes) -> dict[str, list[Any]]:
        """Write one token. Its alternatives hold the token itself, too, as OpenAI's do."""

        def name(token: int) -> str:
            return _id_name(token) if self._by_id else token_text(token_bytes(token))

        data, text = token_bytes(event.token), name(event.token)
        top = {text: written(event.logprob)}
        for token, logprob in event.top:
            top.setdefault(name(token), written(logprob))
        offset, self.characters = self.characters, self.characters + sum(byte & 0xC0 != 0x80 for byte in data)
        return {"tokens": [text], "token_logprobs": [written(event.logprob)], "top_logprobs": [top],
                "text_offset": [offset]}  # fmt: skip


def joined(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Join the lists of several chunks."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [entry for part in parts for entry in part[name]] for name in names}


def token_text(data: bytes) -> str:
    """Return a token's text, or its bytes in words where they are no whole characters."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def written(logprob: float) -> float:
    """Return a log-probability as JSON can write it."""
    return max(logprob, LOWEST)


def _id_name(token: int) -> str:
    return f"token_id:{token}"
