"""Encoder-decoders: the parts that an exporter made, read and joined to one graph that generates greedily.

Owns what is known of the result: how long its answers are, and which tokens are no text. The graph itself is
``compiler.graph.greedy_loop``; what a generation's settings mean is decided where transformers is
(``compiler/runners/greedy_settings.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from compiler.graph import files, greedy_loop
from compiler.graph.greedy_loop import Ban, Greedy
from compiler.graph.onnx_libraries import onnx
from penstock.errors import CompileError


class _Ban(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: tuple[int, ...]
    first: int
    end: int


class _Greedy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the runner says of the search, in the words of ``Greedy``."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    ends: tuple[int, ...]
    pad: int
    forced: dict[int, int]
    bans: tuple[_Ban, ...]


class Assembly:
    """Joins what a runner wrote, and remembers what it was."""

    def __init__(self) -> None:
        self.facts: Mapping[str, Any] = {}
        self.words = ""

    def __call__(self, directory: Path, result: Mapping[str, Any]) -> onnx.ModelProto:
        """Read the parts and join them.

        Raises:
            CompileError: a part cannot be read, or the parts have another form.
        """
        given = msgspec.convert(result["greedy"], _Greedy, strict=False)
        bans = tuple(Ban(tokens=ban.tokens, first=ban.first, end=ban.end) for ban in given.bans)
        settings = {name: getattr(given, name) for name in ("prompt", "max_new_tokens", "ends", "pad", "forced")}
        greedy = Greedy(**settings, bans=bans)
        parts = {name: files.read(directory / place, field="export") for name, place in result["parts"].items()}
        try:
            model = greedy_loop.joined(parts["encoder"], parts["first"], parts["following"], greedy)
        except CompileError as error:
            raise CompileError(f"this encoder-decoder cannot become one graph: {error.message}") from error
        instead = f" (its settings ask for {result['instead_of']})" if result["instead_of"] else ""
        self.words = f"greedy search for up to {greedy.max_new_tokens} tokens{instead}"
        self.facts = {"greedy": msgspec.to_builtins(given, str_keys=True)}
        return model
