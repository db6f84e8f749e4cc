"""Events of small answers, for tests of what is made of them: one token a byte, ids are the bytes' values."""

from __future__ import annotations

from penstock.generation.values import FinishReason, TokenEvent, Usage

END_ID = 0
"""Ends an answer, and has no text."""


def token_bytes(token: int) -> bytes:
    return bytes([token]) if token else b""


def events(
    text: str, *, finish: FinishReason = "stop", top: int = 0, prompt_tokens: int = 3, cached_tokens: int = 2
) -> list[TokenEvent]:
    """Make an answer, a byte a token; text comes when a character is whole, as from a detokenizer."""
    ids = [*text.encode(), END_ID] if finish == "stop" else list(text.encode())
    held, made = b"", []
    for place, token in enumerate(ids):
        held += token_bytes(token)
        try:
            shown = held.decode()
            held = b""
        except UnicodeDecodeError:
            shown = ""
        is_last = place == len(ids) - 1
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(ids), cached_tokens=cached_tokens)
        made.append(
            TokenEvent(
                token=token,
                text=shown,
                logprob=-0.5,
                top=tuple((token + step, -0.5 - step) for step in range(top)),
                finish=finish if is_last else None,
                usage=usage if is_last else None,
            )
        )
    return made
