"""Copies a bounded share of answered requests to another version, and counts how often it answers the same.

The caller has its answer before anything of this begins, and whatever becomes of the copy is counted and nothing else.
Bounded in rows, bytes and time: what does not fit is left out and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cloud_core.policy.traffic import Shadow
from cloud_core.serving.served_text import ServedText
from penstock.artifact.manifests import decoder_of
from penstock.errors import InvalidInput, PenstockError, Unavailable
from penstock.hosting.replica import Chunk
from penstock.policy.decoding import Decoder
from penstock.process.telemetry import log
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import Array

if TYPE_CHECKING:
    from cloud_core.serving.router import Served
    from cloud_core.serving.settings import TrafficSettings

_log = logging.getLogger(__name__)
_LOWEST = 2**31 - 1
_RTOL, _ATOL = 1e-3, 1e-4  # of outputs that no decoder reads


class ShadowCounts:
    """Rows of one arm that were compared.

    Attributes:
        agreed: rows that the shadow answered in the same way.
        disagreed: rows that it did not.
        failed: rows that it did not answer.
        left_out: rows that were drawn, and for which there was no room.
    """

    __slots__ = ("agreed", "disagreed", "failed", "left_out")

    def __init__(self) -> None:
        self.agreed = self.disagreed = self.failed = self.left_out = 0


class Shadowing:
    """One model's shadow.

    Attributes:
        counts: by the arm that answered the caller.
    """

    def __init__(
        self, shadow: Shadow, find: Callable[[], Served | ServedText | None], settings: TrafficSettings
    ) -> None:
        """
        Args:
            find: the shadow's variant; None while it is not in memory.
        """
        self.shadow = shadow
        self.counts: dict[str, ShadowCounts] = {}
        self._find, self._settings = find, settings
        self._rows = self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Shadowing({self.shadow.name!r}, {len(self._tasks)} under way)"

    def offer(self, arm: str, served: Served, request: InferRequest, outputs: Mapping[str, Array], rows: int) -> None:
        """Take an answered request in, or leave it. Returns at once; what it takes happens after the answer."""
        if random.random() >= self.shadow.share:
            return
        counts = self.counts.setdefault(arm, ShadowCounts())
        size_bytes = sum([array.nbytes for array in request.inputs.values()])
        settings = self._settings
        if self._rows + rows > settings.shadow_max_rows or self._bytes + size_bytes > settings.shadow_max_bytes:
            counts.left_out += rows
            return
        # the caller's memory is the caller's again once it has the answer
        inputs = {name: array.copy() for name, array in request.inputs.items()}
        self._rows += rows
        self._bytes += size_bytes
        task = asyncio.get_running_loop().create_task(self._compare(counts, served, inputs, outputs, rows, size_bytes))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def give_up(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()

    async def _compare(
        self,
        counts: ShadowCounts,
        served: Served,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        rows: int,
        size_bytes: int,
    ) -> None:
        try:
            async with asyncio.timeout(self._settings.shadow_timeout_s):
                others = await self._answer(inputs, rows)
            decoder = decoder_of(served.variant.spec)
            agreed = await asyncio.to_thread(agreeing, decoder, outputs, others, rows)
            counts.agreed += agreed
            counts.disagreed += rows - agreed
        except (PenstockError, TimeoutError) as error:
            counts.failed += rows
            log(_log, logging.DEBUG, "a shadow did not answer", version=self.shadow.name, reason=str(error))
        except Exception as error:  # whatever a version does with a copy, nobody waits for it
            counts.failed += rows
            log(_log, logging.WARNING, "a shadow failed", version=self.shadow.name, reason=repr(error))
        finally:
            self._rows -= rows
            self._bytes -= size_bytes

    async def _answer(self, inputs: Mapping[str, Array], rows: int) -> Mapping[str, Array]:
        served = self._find()
        if served is None or isinstance(served, ServedText):
            raise Unavailable("it is not in memory, or answers with texts")
        served.check_inputs(inputs)
        loop = asyncio.get_running_loop()
        return await served.pick().infer(
            Chunk(inputs=inputs, rows=rows),
            shape_key=served.shape_key(inputs, ()),
            deadline=loop.time() + self._settings.shadow_timeout_s,
            priority=_LOWEST,
        )


def agreeing(decoder: Decoder, one: Mapping[str, Array], other: Mapping[str, Array], rows: int) -> int:
    """Count the rows that two versions answer in the same way: by what their scored output says, as certificates do.

    Where the caller wanted other outputs only, or nobody said what the output means, all are compared as numbers.
    """
    if all(name in one and name in other for name in decoder.answered_by):
        with contextlib.suppress(InvalidInput):  # of a model that nobody compiled, the output may be something else
            same = decoder.same(decoder.answers(one), decoder.answers(other))
            return int(np.count_nonzero(same))
    names = one.keys() & other.keys()
    agreed = np.full(rows, bool(names))
    for name in names:
        agreed &= _close(one[name], other[name], rows)
    return int(np.count_nonzero(agreed))


def _close(one: Array, other: Array, rows: int) -> Array:
    if one.shape != other.shape or one.shape[:1] != (rows,):
        return np.zeros(rows, dtype=bool)
    if one.dtype.kind == "O" or other.dtype.kind == "O":
        near: Array = np.asarray(one == other)
    else:
        near = np.asarray(np.isclose(one, other, rtol=_RTOL, atol=_ATOL, equal_nan=True))
    found: Array = np.asarray(near.reshape(rows, -1).all(axis=1))
    return found
