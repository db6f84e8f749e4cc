"""A loaded variant that generates, beside ``cloud_core.serving.router.Served`` for those that answer with arrays."""

from __future__ import annotations

import asyncio
import contextlib

from cloud_core.registry.registry import ModelVersion
from penstock.artifact.manifests import Variant
from penstock.errors import Unavailable
from penstock.generation import plane
from penstock.hosting.generation.text_model import TextModel


class ServedText:
    """What the controller loads and unloads, and the data plane asks.

    Attributes:
        model: answers.
        inflight_bytes: of admitted requests.
        inflight: admitted requests.
    """

    def __init__(self, variant: Variant, model: TextModel, *, now: float) -> None:
        self.variant, self.model = variant, model
        self.last_used_at = now
        self.inflight_bytes = self.inflight = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __repr__(self) -> str:
        return f"ServedText({self.variant.spec.model!r}, {self.variant.digest}, {self.model!r})"

    @property
    def problem(self) -> str:
        """Say why it cannot answer now; "" while it can."""
        return self.model.generator.health().why

    def is_well(self, *, since: float) -> bool:
        """Say yes: a process that hangs is found and replaced by its owner, and is no reason to restart this one."""
        return True

    def check_room(self) -> None:
        """
        Raises:
            Unavailable: its process is being started again.
        """
        if problem := self.problem:
            raise Unavailable(f"model {self.variant.spec.model!r} cannot answer: {problem}", retry_after_s=1.0)

    def enter(self) -> None:
        """Note that a request was admitted: until it is over, all of its answers may begin."""
        self.inflight += 1
        self._is_empty.clear()

    def leave(self) -> None:
        """Note that a request is over."""
        self.inflight -= 1
        if not self.inflight:
            self._is_empty.set()

    async def close(self, timeout_s: float) -> bool:
        """Give what was admitted ``timeout_s``, then end the process: its memory is free whatever it was doing."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
        await self.model.close(0.0)
        return True


def listed(version: ModelVersion, context_tokens: int) -> plane.TextModel:
    """Return what a list of models says about a served version that takes texts."""
    return plane.TextModel(
        name=version.model,
        version=version.tag or version.digest,
        created_at=int(version.pushed_at.timestamp()),
        context_tokens=context_tokens,
    )
