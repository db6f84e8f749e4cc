"""Decides whether the bytes of another request fit into the memory that requests may take. Pure.

A bound in rows says little about memory: a thousand rows may be a thousand numbers or a thousand pictures. What counts
is a request's body, or its tensors where they are larger, from its head to its answer: read, waiting or running.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import MemoryFull


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """Bounds the bytes of requests in flight.

    Attributes:
        max_bytes: of all of them together. One model may take half, so that its large requests leave room for others.
        setting: that bounds it, for whoever is refused.
        retry_after_s: when trying again makes sense.
    """

    max_bytes: int
    setting: str
    retry_after_s: float

    def refusal(self, asked: int, *, held: int, held_by_model: int = 0) -> MemoryFull | None:
        """Refuse a request of ``asked`` bytes beside ``held`` ones; None lets it in.

        One that alone is larger than the limit could never run: it may when nothing else does, and one that is larger
        than its model's half, when nothing else of the model does.
        """
        if held and held + asked > self.max_bytes:
            return self._refusal(asked, held, f"the limit is {self.max_bytes}")
        if held_by_model and held_by_model + asked > self.max_bytes // 2:
            return self._refusal(asked, held_by_model, f"one model may have half of {self.max_bytes}")
        return None

    def _refusal(self, asked: int, held: int, limit: str) -> MemoryFull:
        return MemoryFull(
            f"requests of {held} bytes are in flight and {asked} more do not fit, {limit} ({self.setting})",
            retry_after_s=self.retry_after_s,
        )
