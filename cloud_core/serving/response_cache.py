"""Answers of one loaded variant that are given again to requests which are the same in every byte, and shared ones.

Before the queue, so that an answer from here takes no place in it; after admission, rights and quotas. The key is all
that an answer depends on: the tenant, the outputs that are wanted, and name, datatype, shape and bytes of each input;
the variant is the cache's own, which goes with it. Requests that are the same at the same time share one run: the first
asks, the others wait, each until its own deadline. Whether a value stays is ``penstock.policy.kept_values``'s decision.

No tenant finds out by how fast an answer comes what another one asked: nobody is given another tenant's answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import numpy as np

from cloud_core.serving.counters import CacheMeasures
from penstock.errors import Cancelled, DeadlineExceeded, PenstockError, copy_of
from penstock.hosting.replica import Chunk
from penstock.hosting.rows import Tensors
from penstock.policy.kept_values import KeptValues
from penstock.process.telemetry import log
from penstock.wire.context import RequestContext
from penstock.wire.tensors import Array, to_bytes

HIT, SHARED = "hit", "shared"
"""Where an answer comes from, as its parameter ``cache`` says; one that was computed for its request has none."""

Ask = Callable[[Chunk, RequestContext], Coroutine[Any, Any, Tensors]]

_log = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_OFF_LOOP_BYTES = 256 * 1024  # a digest of more would hold up the event loop for longer than a hand-over takes
_BESIDE_BYTES = 600  # of memory that an answer takes beside its arrays: key, place in the order, mapping
_BESIDE_ARRAY_BYTES = 160
_BESIDE_ELEMENT_BYTES = 40
_RTOL, _ATOL = 1e-3, 1e-5  # between two runs of the same rows in different company


class ResponseCache:
    """Everything here happens on the event loop."""

    def __init__(
        self, name: str, max_bytes: int, *, ttl_s: float, measures: CacheMeasures, now: Callable[[], float]
    ) -> None:
        """
        Args:
            name: of the model, for the log.
            max_bytes: of the answers that are kept.
            ttl_s: an answer is given again for so long; 0 for as long as there is room.
            now: the clock of deadlines.
        """
        self._name, self._now, self._measures = name, now, measures
        self._kept: KeptValues[Tensors] = KeptValues(max_bytes, ttl_s=ttl_s)
        self._under_way: dict[tuple[bytes, int], asyncio.Future[Tensors | PenstockError | None]] = {}
        self._is_proven = self._is_off = False

    def __repr__(self) -> str:
        state = "off" if self._is_off else "proven" if self._is_proven else "not proven"
        return f"ResponseCache({self._name!r}, {self._kept!r}, {len(self._under_way)} under way, {state})"

    @property
    def size_bytes(self) -> int:
        """Return what the kept answers take."""
        return self._kept.size_bytes

    async def infer(self, chunk: Chunk, context: RequestContext, ask: Ask) -> tuple[Tensors, str]:
        """Return an answer, and where it comes from: ``hit``, ``shared``, or "" where ``ask`` made it for this request.

        A caller that is cancelled takes nothing from the others. An error is shared by those who wait for the run, and
        never kept; one that comes from the first caller's own limits, or from its leaving, is nobody else's: the next
        one asks again, with its own rows, since the memory of who left may be used again.

        Raises:
            DeadlineExceeded: also where another one's run goes on. Whatever ``ask`` raises.
        """
        if self._is_off:
            return await ask(chunk, context), ""
        key = await _key_of(context.tenant, chunk)
        same = (key, context.priority)  # whoever is in a hurry does not wait for who is not
        while True:
            now = self._now()
            if context.deadline <= now:
                raise DeadlineExceeded("the deadline passed before the request was looked at; nothing was executed")
            kept = self._kept.get(key, now)
            if kept is not None:
                self._measures.hits += 1
                return kept, HIT
            run = self._under_way.get(same)
            if run is None:
                self._measures.misses += 1
                return await self._lead(key, same, chunk, context, ask), ""
            left_s = None if context.deadline == math.inf else context.deadline - now
            await asyncio.wait((run,), timeout=left_s)  # ends no run when this caller leaves
            if not run.done():
                raise DeadlineExceeded("the deadline passed before the answer came")
            found = run.result()
            if isinstance(found, PenstockError):
                raise copy_of(found)
            if found is not None:
                self._measures.shared += 1
                return found, SHARED

    def clear(self) -> None:
        """Keep nothing of what is here."""
        self._kept.clear()

    async def _lead(
        self, key: bytes, same: tuple[bytes, int], chunk: Chunk, context: RequestContext, ask: Ask
    ) -> Tensors:
        """Ask for all that are the same, and tell them; None tells them to look again."""
        run = self._under_way[same] = asyncio.get_running_loop().create_future()
        found: Tensors | PenstockError | None = None
        try:
            outputs = await ask(chunk, context)
            # they are views of a batch, or of memory that is used again
            kept = {name: _copied(array) for name, array in outputs.items()}
            if self._is_proven or await self._proves_itself(kept, chunk, context, ask):
                found = kept
                self._keep(key, kept)
            return kept
        except PenstockError as error:
            if not isinstance(error, DeadlineExceeded | Cancelled):
                found = error
            raise
        finally:
            del self._under_way[same]
            run.set_result(found)

    def _keep(self, key: bytes, outputs: Tensors) -> None:
        size_bytes = _BESIDE_BYTES + sum(_size_bytes(array) for array in outputs.values())
        self._kept.put(key, outputs, size_bytes, self._now())
        self._measures.ended = self._kept.ended

    async def _proves_itself(self, first: Tensors, chunk: Chunk, context: RequestContext, ask: Ask) -> bool:
        """Ask the first request twice: a model that answers otherwise the second time draws its answers by chance."""
        try:
            second = await ask(chunk, context)
        except PenstockError:  # out of time or room: the next request may tell
            return False
        if all(_is_same(array, second[name]) for name, array in first.items()):
            self._is_proven = True
            return True
        self._is_off = True
        self._kept.clear()
        why = "it answered the same request in two ways; remove cache_bytes from its settings"
        log(_log, logging.WARNING, "responses are not cached", model=self._name, why=why)
        return False


async def _key_of(tenant: str, chunk: Chunk) -> bytes:
    size_bytes = sum([array.nbytes for array in chunk.inputs.values()])
    if size_bytes > _OFF_LOOP_BYTES:
        return await asyncio.to_thread(request_key, tenant, chunk.outputs, chunk.inputs)
    return request_key(tenant, chunk.outputs, chunk.inputs)


def request_key(tenant: str, wanted: Sequence[str] | None, inputs: Tensors) -> bytes:
    """Return what two requests share when nothing in them differs that an answer depends on.

    SHA-256: nobody finds two requests with one key. What is not tensor bytes is framed, so that no part of
    one field can pass for a part of another.
    """
    arrays = [(name, inputs[name]) for name in sorted(inputs)]
    contents = [_bytes_of(array) for _, array in arrays]
    head = [
        (name, array.dtype.str, array.shape, len(data)) for (name, array), data in zip(arrays, contents, strict=True)
    ]
    digest = hashlib.sha256(_encoder.encode((tenant, wanted, head)))
    for data in contents:
        digest.update(data)
    return digest.digest()


def _bytes_of(array: Array) -> bytes | memoryview:
    if array.dtype.kind in "OSU":
        return to_bytes(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _copied(array: Array) -> Array:
    copied = array.copy()
    copied.flags.writeable = False  # several callers are given the same one
    return copied


def _size_bytes(array: Array) -> int:
    if array.dtype.kind == "O":
        return _BESIDE_ARRAY_BYTES + sum(len(one) + _BESIDE_ELEMENT_BYTES for one in array.ravel().tolist())
    return _BESIDE_ARRAY_BYTES + array.nbytes


def _is_same(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind in "fc":
        return bool(np.allclose(one, other, rtol=_RTOL, atol=_ATOL, equal_nan=True))
    return bool(np.array_equal(one, other))
