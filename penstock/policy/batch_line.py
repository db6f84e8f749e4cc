"""Which queued chunks run together, which are too late, and when to look again.

The caller owns clock and device, and asks when the device can take work. Chunks that arrive while it is busy simply
stay queued, so a batch grows until it is picked up and no fixed delay is needed (``max_delay_s=0``: whatever is there
goes at once).

The rules, as ``tests/penstock/policy/plain_planner.py`` writes them down without regard for what they cost:

- A chunk that cannot be answered by its deadline expires.
- Chunks are ordered by priority, with ageing, and by arrival within one priority. Between tenants, who has had least of
  the device goes first (:mod:`penstock.policy.fair_shares`), and priorities order the chunks of one tenant.
- The first chunk chooses the ``shape_key``; chunks with the same key join in order until the next one does not fit, and
  none jumps over it.
- With a delay, the first key that is *ready* goes: its batch is full, its oldest chunk has waited ``max_delay_s``, or
  waiting that long would cost a chunk its deadline.

A lane holds one tenant's chunks of one key and one level of priority, in order of arrival, which is their order: so no
batch looks at a chunk that does not go. What a batch costs grows with its chunks, with the logarithm of what waits, and
with the tenants that wait; with a delay, with the number of keys, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar, cast

from penstock.policy.batching import DEFAULT_LEVEL, BatchLimits, Queued, Room, level_of
from penstock.policy.fair_shares import FairShares, Share

C = TypeVar("C", bound=Queued)
Rank = tuple[float, int]  # of a chunk among its tenant's: when it came, moved by its priority, and its number
_SPARE = 64


@dataclass(slots=True)  # not frozen: made for each batch, and a batch may be one request
class BatchPlan(Generic[C]):
    """What to do now. Whatever is named here has left the line.

    Attributes:
        dispatch: chunks of one batch, in the order in which they run; empty to wait.
        expire: chunks that are too late to be answered in time.
        wake_at: when to ask again if nothing arrives and nothing was dispatched: the end of a delay or the moment the
            next chunk becomes too late, whichever is first; None when nothing waits for a time.
    """

    dispatch: list[C]
    expire: list[C]
    wake_at: float | None = None


class _Deadlines(Generic[C]):
    """The deadlines of chunks that wait, the earliest first. Records of chunks that have left stay for a while."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Lane[C]]] = []

    def add(self, deadline: float, number: int, lane: _Lane[C], waiting: int) -> None:
        """Note a deadline, where so many chunks wait in all."""
        heap = self._heap
        if len(heap) > 2 * waiting + _SPARE:
            heap[:] = [record for record in heap if record[1] in record[2].chunks]
            heapify(heap)
        heappush(heap, (deadline, number, lane))

    def earliest(self) -> float | None:
        heap = self._heap
        while heap:
            deadline, number, lane = heap[0]
            if number in lane.chunks:
                return deadline
            heappop(heap)
        return None

    def overdue(self, now: float, service_s: float) -> list[C]:
        """Find those that would be late, once. Costs a comparison while nobody is."""
        heap, late = self._heap, []
        while heap and heap[0][0] - service_s <= now:
            _, number, lane = heappop(heap)
            if number in lane.chunks:
                late.append(lane.chunks[number])
        return late


class _Kind(Generic[C]):
    """The chunks of one ``shape_key``."""

    __slots__ = ("deadlines", "key", "lanes", "rows")

    def __init__(self, key: Hashable, deadlines: _Deadlines[C] | None) -> None:
        self.key, self.deadlines = key, deadlines
        self.lanes: dict[tuple[Share, int], _Lane[C]] = {}
        self.rows = 0


class _Lane(Generic[C]):
    """One tenant's chunks of one key and level, by number: in order of arrival."""

    __slots__ = ("chunks", "is_listed", "kind", "late_s", "level", "share")

    def __init__(self, kind: _Kind[C], share: Share, level: int, late_s: float) -> None:
        self.kind, self.share, self.level, self.late_s = kind, share, level, late_s
        self.chunks: OrderedDict[int, C] = OrderedDict()
        self.is_listed = False

    def rank(self) -> Rank:
        """Rank its first chunk; there must be one. A fixed value: ageing needs no clock, and no two calls disagree."""
        number, chunk = next(iter(self.chunks.items()))
        return chunk.arrived_at + self.late_s, number


class BatchLine(Generic[C]):
    """The chunks that wait before one device.

    Attributes:
        room: the rows that wait here, and wherever else the room is shared.
        shares: of tenants; None where all chunks are one tenant's.
    """

    def __init__(self, limits: BatchLimits, room: Room, shares: FairShares | None = None) -> None:
        self.room, self.shares = room, shares
        self._ageing_s, self._has_delay = limits.ageing_s, limits.max_delay_s > 0
        self._size = self._number = 0
        self._everybody = Share(1.0)
        self._kinds: dict[Hashable, _Kind[C]] = {}
        self._waiting: dict[Share, list[tuple[float, int, _Lane[C]]]] = {}  # ranks, or ranks of before, of lanes
        self._deadlines: _Deadlines[C] = _Deadlines()
        self._last: _Lane[C] | None = None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[C]:
        for kind in self._kinds.values():
            for lane in kind.lanes.values():
                yield from lane.chunks.values()

    def add(self, chunk: C) -> None:
        """Let a chunk wait behind the others."""
        shares = self.shares
        share = self._everybody if shares is None else shares.of(chunk.tenant)
        level, lane = level_of(chunk.priority) if chunk.priority else DEFAULT_LEVEL, self._last
        if lane is None or lane.level != level or lane.share is not share or lane.kind.key != chunk.shape_key:
            lane = self._last = self._lane(chunk.shape_key, share, level)
        if shares is not None and not share.chunks:
            shares.came(share)
        number = self._number = self._number + 1
        chunk.lane, chunk.number = lane, number
        lane.chunks[number] = chunk
        if not lane.is_listed:
            self._list(lane)
        if chunk.deadline is not None:
            self._deadlines.add(chunk.deadline, number, lane, self._size)
            if lane.kind.deadlines is not None:
                lane.kind.deadlines.add(chunk.deadline, number, lane, self._size)
        rows = chunk.rows  # as _count() does, written out: one request a time comes here
        self._size += 1
        self.room.rows += rows
        lane.kind.rows += rows
        share.rows += rows
        share.chunks += 1

    def remove(self, gone: Iterable[C]) -> None:
        """Let chunks wait no more; those that do not are left alone."""
        for chunk in gone:
            lane = cast("_Lane[C] | None", chunk.lane)
            if lane is not None:
                del lane.chunks[chunk.number]
                self._left(lane, chunk)

    def overdue(self, now: float) -> list[C]:
        """Take out those whose deadline has passed."""
        late = self._deadlines.overdue(now, 0.0)
        self.remove(late)
        return late

    def next_deadline(self) -> float | None:
        """Find the earliest deadline; None where nobody has one."""
        return self._deadlines.earliest()

    def take(self, limits: BatchLimits, now: float, *, service_s: float = 0.0, row_s: float = 0.0) -> BatchPlan[C]:
        """Choose the next batch, and take it and what is late out of the line.

        Args:
            now: on the clock of ``arrived_at`` and ``deadline``.
            service_s: expected time from dispatch to answer.
            row_s: what a row in a batch should cost; its tenant is charged so much.
        """
        late = self._deadlines.overdue(now, service_s)
        if late:
            self.remove(late)
            late.sort(key=lambda chunk: chunk.number)
        if not self._size:
            return BatchPlan([], late)
        if not limits.max_delay_s:
            return BatchPlan(self._batch(self._first().kind, limits.max_rows, row_s), late)
        kind, wake_at = self._ready(limits, now, service_s)
        if kind is not None:
            return BatchPlan(self._batch(kind, limits.max_rows, row_s), late)
        limit = self._deadlines.earliest()
        if limit is not None:
            wake_at = min(wake_at, limit - service_s)
        return BatchPlan([], late, wake_at)

    # -- which kind --------------------------------------------------------------------------------------------------

    def _first(self) -> _Lane[C]:
        """Find the lane of the chunk that is first of all; there must be one."""
        if self.shares is None:
            return self._first_of(self._everybody)
        waiting = [(share.had, self._first_of(share)) for share in tuple(self._waiting)]
        return min(waiting, key=lambda one: (one[0], one[1].rank()))[1]

    def _first_of(self, share: Share) -> _Lane[C]:
        """Find the lane of a tenant's first chunk. What is listed with the rank of a chunk that has left moves down."""
        lanes = self._waiting[share]
        while True:
            _, number, lane = lanes[0]
            if not lane.chunks:
                heappop(lanes)
                self._unlink(lane)
            elif number in lane.chunks:
                return lane
            else:
                heapreplace(lanes, (*lane.rank(), lane))

    def _ready(self, limits: BatchLimits, now: float, service_s: float) -> tuple[_Kind[C] | None, float]:
        """Find the first kind that need not wait; else the end of the earliest delay."""
        found: tuple[float, Rank] | None = None
        ready: _Kind[C] | None = None
        wake_at = float("inf")
        for kind in self._kinds.values():
            lanes = [lane for lane in kind.lanes.values() if lane.chunks]
            if not lanes:
                continue
            closes_at = min([next(iter(lane.chunks.values())).arrived_at for lane in lanes]) + limits.max_delay_s
            deadline = None if kind.deadlines is None else kind.deadlines.earliest()
            is_urgent = deadline is not None and deadline - service_s <= closes_at
            if kind.rows >= limits.max_rows or closes_at <= now or is_urgent:
                rank = min([(lane.share.had, lane.rank()) for lane in lanes])
                if found is None or rank < found:
                    found, ready = rank, kind
            else:
                wake_at = min(wake_at, closes_at)
        return ready, wake_at

    # -- which chunks ------------------------------------------------------------------------------------------------

    def _batch(self, kind: _Kind[C], max_rows: int, row_s: float) -> list[C]:
        lanes = [lane for lane in kind.lanes.values() if lane.chunks]
        if len(lanes) == 1:
            return self._batch_of_lane(lanes[0], max_rows, row_s)
        by_share: dict[Share, list[tuple[float, int, _Lane[C]]]] = {}
        for lane in lanes:
            by_share.setdefault(lane.share, []).append((*lane.rank(), lane))
        tenants = []
        for share, heads in by_share.items():
            heapify(heads)
            tenants.append((share.had, *heads[0][:2], heads))
        heapify(tenants)  # numbers differ: no list is ever compared
        taken: list[C] = []
        rows = 0
        while tenants:
            heads = tenants[0][3]
            _, number, lane = heads[0]
            chunk = lane.chunks[number]
            if taken and rows + chunk.rows > max_rows:
                break
            taken.append(chunk)
            rows += chunk.rows
            del lane.chunks[number]
            if lane.chunks:
                heapreplace(heads, (*lane.rank(), lane))
            else:
                heappop(heads)
            self._charge(lane.share, chunk.rows * row_s)
            self._left(lane, chunk)
            if heads:
                heapreplace(tenants, (lane.share.had, *heads[0][:2], heads))
            else:
                heappop(tenants)
        return taken

    def _batch_of_lane(self, lane: _Lane[C], max_rows: int, row_s: float) -> list[C]:
        """Take a batch out of the only lane that has one: most batches, so that the books are kept once for all."""
        chunks, rows = lane.chunks, 0
        taken: list[C] = []
        while chunks:
            number, chunk = chunks.popitem(last=False)
            if taken and rows + chunk.rows > max_rows:
                chunks[number] = chunk
                chunks.move_to_end(number, last=False)
                break
            taken.append(chunk)
            rows += chunk.rows
            chunk.lane = None
        self._charge(lane.share, rows * row_s)
        self._count(lane, -len(taken), -rows)
        return taken

    def _charge(self, share: Share, seconds: float) -> None:
        if self.shares is not None:
            self.shares.charge(share, seconds)

    # -- books -------------------------------------------------------------------------------------------------------

    def _left(self, lane: _Lane[C], chunk: C) -> None:
        """Keep the books when a chunk has left its lane."""
        chunk.lane = None
        self._count(lane, -1, -chunk.rows)

    def _count(self, lane: _Lane[C], chunks: int, rows: int) -> None:
        share = lane.share
        self._size += chunks
        self.room.rows += rows
        lane.kind.rows += rows
        share.rows += rows
        share.chunks += chunks
        if self.shares is not None and not share.chunks:
            for _, _, listed in self._waiting.pop(share):
                self._unlink(listed)

    def _lane(self, key: Hashable, share: Share, level: int) -> _Lane[C]:
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(key, _Deadlines() if self._has_delay else None)
        lane = kind.lanes.get((share, level))
        if lane is None:
            lane = kind.lanes[share, level] = _Lane(kind, share, level, level * self._ageing_s)
        return lane

    def _list(self, lane: _Lane[C]) -> None:
        lanes = self._waiting.setdefault(lane.share, [])
        if len(lanes) > 2 * self._size + _SPARE:  # of many kinds that came and were withdrawn
            for _, _, listed in lanes:
                if not listed.chunks:
                    self._unlink(listed)
            lanes[:] = [record for record in lanes if record[2].chunks]
            heapify(lanes)
        lane.is_listed = True
        heappush(lanes, (*lane.rank(), lane))

    def _unlink(self, lane: _Lane[C]) -> None:
        """Forget an empty lane that is listed no more."""
        lane.is_listed = False
        if self._last is lane:
            self._last = None
        del lane.kind.lanes[lane.share, lane.level]
        if not lane.kind.lanes:
            del self._kinds[lane.kind.key]
