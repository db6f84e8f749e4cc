"""From a slot on disk to a model that may answer: verified, loaded, proven, one at a time on a device.

Owns what loading needs of disk and engine, and what becomes of bytes that turn out to be damaged. What a failure means
for the release, and when to try again, is the updater's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from edge_agent.policy.audit import Audit
from edge_agent.policy.model_state import Slot
from edge_agent.serving.hosting import Hosted
from edge_agent.serving.load_plan import LoadPlan
from edge_agent.updates.store import in_thread
from edge_agent.updates.tools import Tools, as_internal
from penstock.errors import DigestMismatch, NotFound, PenstockError, SignatureError, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


def is_damaged(error: PenstockError) -> bool:
    """Tell whether another fetch may mend what kept a slot from being loaded."""
    return isinstance(error, DigestMismatch | NotFound | SignatureError)


class SlotLoader:
    """Loads slots of one model."""

    def __init__(self, model: str, tools: Tools) -> None:
        self._model, self._tools = model, tools

    def __repr__(self) -> str:
        return f"SlotLoader({self._model})"

    async def load(
        self, slot: Slot, begin: Callable[[], Awaitable[bool]], *, audits: Sequence[Audit], has_run: bool = False
    ) -> Hosted | None:
        """Verify a slot, load it and let it prove itself; return what may answer, None where ``begin`` says no.

        Args:
            begin: makes it known on disk that a load begins, which may kill this process. Called when it is the
                slot's turn.
            audits: what is remembered of this model's audits.
            has_run: the slot was committed on this device, and is loaded without what is damaged besides its weights.

        Raises:
            PenstockError: whatever went wrong, as an error of ours.
        """
        plan = await self._plan(slot, has_run=has_run)
        if plan.damaged:
            log(_log, logging.WARNING, "loading without what is damaged", model=self._model,
                version=slot.release.version, damaged=plan.damaged)  # fmt: skip
            await self.discard_damaged(slot)
        async with self._tools.one_load:
            return await self._prepare(plan, slot, audits) if await begin() else None

    async def discard_damaged(self, slot: Slot) -> None:
        """Delete the damaged blobs of a slot, so that the next fetch brings them again."""
        try:
            await in_thread(self._tools.store.discard_damaged, slot)
        except OSError as error:  # read-only or worn out: what is damaged is not loaded, wherever it lies
            log(_log, logging.WARNING, "damaged blobs stay", model=self._model, error=error)

    async def _plan(self, slot: Slot, *, has_run: bool) -> LoadPlan:
        try:
            return await in_thread(self._tools.store.load_plan, self._model, slot, has_run=has_run)
        except OSError as error:
            raise StorageError(f"reading {slot.release.version}: {error}") from error

    async def _prepare(self, plan: LoadPlan, slot: Slot, audits: Sequence[Audit]) -> Hosted:
        counts = await self._tools.counted(self._model, slot.release.artifact_digest)
        try:
            return await self._tools.hosting.prepare(plan, counts=counts, audits=audits)
        except PenstockError:
            raise
        except Exception as error:  # a foreign runtime with a foreign model may raise anything; it must not end us
            raise as_internal(error) from error
