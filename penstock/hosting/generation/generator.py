"""The port of everything that generates: an engine in a process of its own, or a server of others behind a URL.

What the data planes of agent and core ask, and what they are told for their metrics. Owns nothing: each implementation
says how it queues and where it runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.replica import Health
from penstock.runtime.generation import EngineFacts


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has to do at the moment.

    Attributes:
        max_kv_bytes: that may be held by those that run.
    """

    waiting: int = 0
    waiting_kv_bytes: int = 0
    running: int = 0
    running_kv_bytes: int = 0
    max_kv_bytes: int = 0


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What was done since the beginning.

    Attributes:
        prompt_tokens: of generations that got their first token.
        cached_tokens: of those, that were not computed again.
        ended: generations that have their whole answer.
        cut_off: that were given up by whoever asked, or whose deadline passed.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ended: int = 0
    cut_off: int = 0

    def plus(self, other: Totals) -> Totals:
        """Return the sum, for what several lives of a worker did."""
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Measures(Protocol):
    """Who is told how long generations took, in seconds."""

    def queued(self, seconds: float) -> None: ...
    def first_token(self, seconds: float) -> None: ...
    def between_tokens(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a generator has done and has to do.

    Attributes:
        load: what waits and runs now.
        totals: of all lives of its process, or of all its servers.
        starts: of processes, or of servers, that came as far as a token.
        crashes: ends of a process that nobody asked for, or failures of servers.
        hangs: processes or servers that were given up because they did not move.
    """

    load: Load
    totals: Totals
    starts: int
    crashes: int
    hangs: int


class Generator(Protocol):
    """One language model that answers; tests/penstock/hosting/generation/test_generator_contract.py is its contract."""

    @property
    def facts(self) -> EngineFacts: ...

    def generate(
        self, request: GenerationRequest, *, deadline: float, priority: int = 0
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer one request, token by token. Closing the iterator, or cancelling who reads it, gives the rest up: the
        engine makes at most the step that it is in. Who does not read to the end has to close it. A reader that stops
        reading is cancelled when a bounded number of events waits for it.

        Args:
            request: its ``id`` is for logs; a generator tells two of the same id apart.
            deadline: on the event loop's clock. What has not begun by then is not run, what runs is cut off.
            priority: 1 highest, larger lower, 0 the default, as in ``penstock.policy.batching``.

        Raises:
            InvalidInput: as :meth:`penstock.runtime.generation.GenerationEngine.admit`. QueueFull: too many wait.
            DeadlineExceeded: the deadline passed. Unavailable: the engine died under this request, or is restarting.
            Cancelled: too many events were not read.
        """
        ...

    def counts(self) -> Counts:
        """Return what it has done and has to do."""
        ...

    def health(self) -> Health:
        """Say whether it makes tokens. Asked often: looks at what is known and waits for nothing."""
        ...

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, then end it; idempotent."""
        ...
