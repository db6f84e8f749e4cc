"""Decides whether the bytes of another request fit into the memory that requests may take. Pure.

A bound in rows says little about memory: a thousand rows may be a thousand numbers or a thousand pictures. What counts
is a request's body, or its tensors where they are larger, from its head to its answer: read, waiting or running.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import MemoryFull
from penstock.policy.fair_shares import fits_beside


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """Bounds the bytes of requests in flight.

    Attributes:
        max_bytes: of all of them together. One model may have what others left free, which is half where it is alone,
            so that its large requests leave room; and so may one tenant.
        setting: that bounds it, for whoever is refused.
    """

    max_bytes: int
    setting: str

    def refusal(
        self,
        asked: int,
        *,
        held: int,
        held_by_model: int = 0,
        held_by_tenant: int = 0,
        retry_after_s: float | None = None,
    ) -> MemoryFull | None:
        """Refuse a request of ``asked`` bytes beside ``held`` ones; None lets it in.

        One that alone is larger than the limit could never run: it may when nothing else does, and one that is larger
        than its model's or its tenant's part, when nothing else of that does.
        """
        message = ""
        if held and held + asked > self.max_bytes:
            message = self._message(asked, held, f"the limit is {self.max_bytes}")
        for mine, what in ((held_by_model, "model"), (held_by_tenant, "tenant")):
            if mine and not message and not fits_beside(mine, asked, held=held, limit=self.max_bytes):
                limit = f"one {what} may have what others left free of {self.max_bytes}"
                message = self._message(asked, mine, limit)
        return MemoryFull(message, retry_after_s=retry_after_s) if message else None

    def _message(self, asked: int, held: int, limit: str) -> str:
        return f"requests of {held} bytes are in flight and {asked} more do not fit, {limit} ({self.setting})"
