"""The port of everything that generates: an engine in a process of its own, or a server of others behind a URL.

What the data planes of agent and core ask. Owns nothing: each implementation says how it queues and where it runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.replica import Health
from penstock.runtime.generation import EngineFacts


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

    def health(self) -> Health:
        """Say whether it makes tokens. Asked often: looks at what is known and waits for nothing."""
        ...

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, then end it; idempotent."""
        ...
