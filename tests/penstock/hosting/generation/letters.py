"""Texts and requests for the scripted engine: each token is the letter of its number."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer, decoders, models

from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.generation.values import GenerationRequest
from penstock.hosting.generation.frames import Model
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.scripted import Script

VOCABULARY = 1024


@cache
def tokenizer_json() -> bytes:
    """A tokenizer whose tokens are letters."""
    made = Tokenizer(models.BPE({chr(token): token for token in range(VOCABULARY)}, []))
    made.decoder = decoders.Fuse()
    return str(made.to_str()).encode()


def letters(request: GenerationRequest) -> AnswerText:
    """Begin the text of an answer."""
    return AnswerText(request, tokenizer.load({tokenizer.FILE: tokenizer_json()}).pieces)


def asked(prompt: str = "hello", *, new: int = 8, id: str = "a", **more: Any) -> GenerationRequest:
    """A request for the letters of ``prompt``, over and over, and no end before the limit."""
    ids = tuple(ord(letter) for letter in prompt)
    return GenerationRequest(id=id, prompt_ids=ids, max_new_tokens=new, **{"ignore_end": True, **more})


def model(directory: Path, *, slots: int = 4, chunk_tokens: int = 16, **script: Any) -> Model:
    """A scripted model in a directory."""
    (directory / "script.json").write_bytes(msgspec.json.encode(Script(**script)))
    (directory / tokenizer.FILE).write_bytes(tokenizer_json())
    options = GenerationOptions(slots=slots, chunk_tokens=chunk_tokens)
    return Model(engine="scripted", directory=str(directory), options=options)
