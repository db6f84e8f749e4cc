"""Run one language model, one step at a time: the GenerationEngine port and the table of its lazy factories.

An engine owns the model, its slots of keys and values, and sampling. It is a synchronous state machine in one thread:
``admit`` and ``cancel`` between two steps, ``step`` for one forward pass. It holds no queue, no text and no clock: what
waits for a slot, stop strings and deadlines belong to ``penstock.hosting.generation``. Importing this package imports
no runtime library.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.generation.values import GenerationRequest, SampledToken


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How an engine may use the machine.

    Attributes:
        threads: of one step.
        slots: requests that may run at the same time.
        context_tokens: fewer than the model's own, to save memory; None takes the model's.
        chunk_tokens: of prompts, that one step computes. Fewer let others go on sooner, and cost more in all.
    """

    provider: str = "cpu"
    threads: int = 1
    slots: int = 4
    context_tokens: int | None = None
    chunk_tokens: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a loaded engine can take.

    Attributes:
        context_tokens: most tokens of prompt and answer together.
        vocabulary: ids are from 0 to below it.
        slots: requests that may run at the same time.
        end_ids: tokens with which the model ends an answer.
        kv_bytes_per_token: memory that one token of one request takes.
        max_top_logprobs: alternatives that it can tell.
        grammars: kinds of :class:`penstock.generation.values.Grammar` that it can hold to.
        scores_options: it answers requests with :class:`penstock.generation.values.Options`.
    """

    context_tokens: int
    vocabulary: int
    slots: int
    end_ids: frozenset[int]
    kv_bytes_per_token: int
    max_top_logprobs: int = 20
    grammars: frozenset[str] = frozenset()
    scores_options: bool = False


class GenerationEngine(Protocol):
    """One loaded language model; tests/penstock/runtime/generation/test_engine_contract.py says what each keeps to.

    Owned by one thread. What a request is answered does not depend on who else is in the engine, in exact arithmetic;
    rounding may choose otherwise between two tokens that are nearly as likely.
    """

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def running(self) -> int:
        """Return the number of requests that hold a slot."""
        ...

    def admit(self, request: GenerationRequest) -> None:
        """Give a request a slot. Nothing is computed before the next step.

        Raises:
            InvalidInput: ids outside of the vocabulary, no ids, a prompt and answer that are longer than the context
                (the message has both numbers), a grammar, options or alternatives that it cannot give, an id that runs
                already. QueueFull: all slots are taken.
        """
        ...

    def step(self) -> Sequence[SampledToken]:
        """Compute a bounded piece: some of the prompts, the next token of every request that has its prompt behind it,
        or both. Return what was sampled; a request whose token has a ``finish`` has left its slot.

        A step with nothing to do returns at once. A long prompt takes several steps, and others go on meanwhile. The
        tokens of an answer among options come all at once, when the last of these is scored.

        Raises:
            Internal: the runtime failed; every request in the engine is lost.
        """
        ...

    def cancel(self, request: str) -> bool:
        """Take a request out, whatever it is in; say whether it was there. Its slot is free at once."""
        ...

    def close(self) -> None:
        """Release the model's memory; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a model finds of each token of a text but the first, given those before it.

    Attributes:
        log_likelihood: natural logarithm of its probability, float64 [T - 1].
        likeliest: the token that the model would have put in its place, int64 [T - 1].
    """

    log_likelihood: NDArray[np.float64]
    likeliest: NDArray[np.int64]


def joined(parts: Sequence[Reading]) -> Reading:
    """Join the pieces of one text, in order."""
    return Reading(
        log_likelihood=np.concatenate([part.log_likelihood for part in parts]),
        likeliest=np.concatenate([part.likeliest for part in parts]).astype(np.int64, copy=False),
    )


class ReadingEngine(GenerationEngine, Protocol):
    """An engine that also reads: what a model is measured with, by the code that serves it."""

    def read(self, ids: Sequence[int]) -> Reading:
        """Compute a text of at least two tokens in a free slot, in the pieces in which prompts are computed.

        Raises:
            InvalidInput: fewer tokens, more than the context has, or one that is not in the vocabulary. QueueFull: all
                slots are taken. Internal: the runtime failed.
        """
        ...


_ENGINES: Mapping[str, str] = {
    "genai": "penstock.runtime.generation.suited",  # what variants of language models name
    "onnxruntime": "penstock.runtime.generation.slots",
    "onnxruntime-genai": "penstock.runtime.generation.genai",
    "scripted": "penstock.runtime.generation.scripted",
}
"""Engine -> module with ``load(directory, options)``, imported when the first model of this engine is loaded."""


def load(engine: str, directory: Path, options: GenerationOptions) -> GenerationEngine:
    """Load the model in a directory with the named engine.

    Raises:
        InvalidInput: no such engine. MissingExtra: its library is not installed. ArtifactError: no model that it can
            run, or a provider that is not there.
    """
    if engine not in _ENGINES:
        raise InvalidInput(f"engine: unknown engine {engine!r}; known: {', '.join(sorted(_ENGINES))}", field="engine")
    loaded: GenerationEngine = importlib.import_module(_ENGINES[engine]).load(directory, options)
    return loaded
