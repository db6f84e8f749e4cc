"""Where to cut a graph into pipeline stages: stages fit their devices, and as few bytes as possible cross the cuts.

Pure: sizes in, positions out. Nodes stay in the order in which the file has them, and a stage is a run of consecutive
nodes, so that data flows one way along a line of devices; what a later stage needs passes through all before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SLACK = 1.1
"""Without limits from outside: how much larger than in the most even division the largest stage may be, so that cuts
can move to where less crosses."""
MAX_CUTS = 1500
"""Positions tried; of longer graphs those at which the least crosses. Time and memory grow with its square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a graph needs, node by node.

    Attributes:
        reads: tensors that each node reads; constants are not among them.
        makes: tensors that each node makes.
        weights: constants of each node, by name.
        given: inputs of the graph.
        wanted: its outputs.
        tensor_bytes: sizes of tensors, by name.
        weight_bytes: sizes of constants, by name.
        forbidden: positions at which no cut may be: ``k`` is the cut before node k.
    """

    reads: Sequence[frozenset[str]]
    makes: Sequence[frozenset[str]]
    weights: Sequence[frozenset[str]]
    given: frozenset[str]
    wanted: frozenset[str]
    tensor_bytes: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    forbidden: frozenset[int] = frozenset()

    @property
    def nodes(self) -> int:
        return len(self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages are nodes ``bounds[s]`` to ``bounds[s + 1]``; ``crossing_bytes`` are of cuts, ``memory_bytes`` of stages.

    A stage's memory is its constants and the most that is alive at once while it runs, passing tensors included.
    """

    bounds: tuple[int, ...]
    crossing_bytes: tuple[int, ...]
    memory_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoesNotFit:
    """No division has every stage within its limit.

    Attributes:
        largest_bytes: what the largest stage of the most even division needs; None when the graph has fewer places to
            cut than were asked for.
    """

    largest_bytes: int | None


def plan(work: Work, stages: int, *, limits: Sequence[int] = ()) -> Plan | DoesNotFit:
    """Choose the division that moves the least bytes, of those the one whose largest stage is smallest.

    Args:
        limits: memory of each device, in bytes; without any, stages may be a tenth larger than an even division's.
    """
    crossing = [_bytes(work, names) for names in alive(work)]
    places = _places(work, crossing, stages)
    if len(places) < stages + 1:
        return DoesNotFit(largest_bytes=None)
    memory = _memory(work, places)
    cost = np.array([crossing[place] for place in places], np.float64)
    even = _divide(memory, np.zeros(len(places)), [np.inf] * stages)
    assert even is not None
    largest = max(memory[start, stop] for start, stop in pairwise(even))
    best = _divide(memory, cost, [float(each) for each in limits] or [largest * _SLACK] * stages)
    if best is None:
        return DoesNotFit(largest_bytes=int(largest))
    return Plan(
        bounds=tuple(places[index] for index in best),
        crossing_bytes=tuple(int(cost[index]) for index in best[1:-1]),
        memory_bytes=tuple(int(memory[start, stop]) for start, stop in pairwise(best)),
    )


def alive(work: Work) -> list[frozenset[str]]:
    """Find for each position the tensors made or given before it and needed at or after it: what
    crosses a cut there."""
    last: dict[str, int] = dict.fromkeys(work.wanted, work.nodes)
    for index in range(work.nodes - 1, -1, -1):
        for name in work.reads[index]:
            last.setdefault(name, index)
    present = {name for name in work.given if last.get(name, -1) >= 0}
    found = [frozenset(present)]
    for index in range(work.nodes):
        present |= {name for name in work.makes[index] if last.get(name, -1) > index}
        present -= {name for name in work.reads[index] if last[name] <= index}
        found.append(frozenset(present))
    return found


def _bytes(work: Work, names: frozenset[str]) -> int:
    return sum(work.tensor_bytes.get(name, 0) for name in names)


def _places(work: Work, crossing: Sequence[int], stages: int) -> list[int]:
    inner = [place for place in range(1, work.nodes) if place not in work.forbidden]
    if len(inner) > max(MAX_CUTS, stages):
        inner = sorted(sorted(inner, key=lambda place: (crossing[place], place))[:MAX_CUTS])
    return [0, *inner, work.nodes]


def _memory(work: Work, places: Sequence[int]) -> Floats:
    """Return the bytes that a stage from one place to another needs; infinite where the second is not behind the
    first."""
    count = work.nodes
    present = alive(work)
    busy = np.array(
        [
            _bytes(work, present[index] | present[index + 1] | work.reads[index] | work.makes[index])
            for index in range(count)
        ],
        np.float64,
    )
    used: dict[str, list[int]] = {}
    for index in range(count):
        for name in work.weights[index]:
            used.setdefault(name, []).append(index)
    # a constant counts once in a stage: at its first use there, which is one whose use before lies outside
    counted = np.zeros(count)
    follows: dict[int, list[tuple[int, int]]] = {}
    for name, uses in used.items():
        counted[uses[0]] += work.weight_bytes[name]
        for before, after in pairwise(uses):
            follows.setdefault(before, []).append((after, work.weight_bytes[name]))
    memory = np.full((len(places), len(places)), np.inf)
    behind = np.array(places[1:]) - 1
    done = 0
    for row, start in enumerate(places[:-1]):
        for index in range(done, start):
            for after, size in follows.get(index, ()):
                counted[after] += size
        done = start
        weights = np.concatenate([np.zeros(start), np.cumsum(counted[start:])])
        peak = np.concatenate([np.zeros(start), np.maximum.accumulate(busy[start:])])
        memory[row, row + 1 :] = (weights + peak)[behind[row:]]
    return memory


def _divide(memory: Floats, cost: Floats, limits: Sequence[float]) -> list[int] | None:
    """Return the indices of the bounds that minimise (sum of costs, largest memory), the first of equal ones; None if
    none fits.

    Dynamic programming over places; the pair is compared lexicographically, which both of its parts allow.
    """
    count = len(cost)
    total = np.full(count, np.inf)
    largest = np.full(count, np.inf)
    total[0], largest[0] = 0.0, 0.0
    came: list[NDArray[np.int64]] = []
    for stage, limit in enumerate(limits):
        is_last = stage == len(limits) - 1
        fits = memory <= limit
        sums = np.where(fits, total[:, None] + (0.0 if is_last else cost[None, :]), np.inf)
        peaks = np.where(fits, np.maximum(largest[:, None], memory), np.inf)
        least = sums.min(axis=0)
        peaks = np.where(sums == least, peaks, np.inf)
        came.append(np.argmin(peaks, axis=0))
        total, largest = least, peaks.min(axis=0)
    if not np.isfinite(total[-1]):
        return None
    bounds = [count - 1]
    for choice in reversed(came):
        bounds.append(int(choice[bounds[-1]]))
    return bounds[::-1]
