"""Lets models be on trial one at a time, where the process before died and nobody knows of which.

Owns whose turn it is. Whether turns are taken at all, and in which order, is decided by ``edge_agent.policy.blame``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Turns:
    """A turn is taken before a trial begins, and passed on when the model has no trial open."""

    def __init__(self, order: Sequence[str]) -> None:
        """Take the models in the order of their first turns; without any, nobody waits."""
        self._are_taken = bool(order)
        self._waiting_for = list(order)
        self._holder = ""
        self._changed = asyncio.Condition()

    def __repr__(self) -> str:
        return f"Turns(holder={self._holder!r}, waiting_for={self._waiting_for})"

    async def take(self, model: str) -> None:
        """Wait until no other model is on trial, nor comes before this one. Taken twice, it is one turn."""
        if not self._are_taken:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_free(model))
            self._holder = model

    async def pass_on(self, model: str) -> None:
        """Let the next model begin; one that has no turn gives up its place in the order."""
        if not self._are_taken:
            return
        async with self._changed:
            if self._holder == model:
                self._holder = ""
            if model in self._waiting_for:
                self._waiting_for.remove(model)
            self._changed.notify_all()

    def _is_free(self, model: str) -> bool:
        if self._holder:
            return self._holder == model
        return model not in self._waiting_for or self._waiting_for[0] == model
