"""Ranges of a graph's tensors from examples, in bounded memory: batches stream by, tensors are taken a few at a time.

Owns that every row of every batch is used, in every round, and that memory depends on neither the number of batches
nor the number of tensors. The price of taking tensors in turns is running the graph once a turn. onnxruntime's own
calibrators hold all intermediate tensors of all batches, or, told not to, lose some: they are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.calibration import ranges
from compiler.calibration.observers import Extremes, Histogram, Magnitudes
from compiler.calibration.ranges import Calibrator, Range
from compiler.graph import probe
from compiler.progress import Progress, unwatched
from penstock.errors import CalibrationError
from penstock.wire.tensors import Array

Batches = Callable[[], Iterator[dict[str, Array]]]

_COUNTERS_BYTES = 8 * (1 << 16)
"""What a tensor's histograms take while it is observed."""

_ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How ranges are found.

    Attributes:
        percent: of the values that a ``percentile`` range holds.
        symmetric: integers reach as far below zero as above it.
        memory_bytes: for the intermediate tensors of one batch and their histograms; at least one tensor is taken.
    """

    calibrator: Calibrator
    percent: float
    symmetric: bool
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges by tensor; ``rows`` examples set each of them, in ``turns`` of tensors."""

    ranges: Mapping[str, Range]
    rows: int
    turns: int


def collect(
    model: Any,
    tensors: Sequence[str],
    batches: Batches,
    settings: Settings,
    progress: Progress = unwatched,
) -> Calibration:
    """Find the ranges of ``tensors`` of a float graph.

    Args:
        model: an ``onnx.ModelProto``.
        batches: examples by input name, dimension 0 the batch; called once a turn, twice for entropy.

    Raises:
        CalibrationError: no rows, another number of rows at a later call, NaN or infinities (with the tensor's name), a
            tensor that is empty on every example, or examples that the model cannot run on.
        CompileError: onnxruntime cannot run the graph.
    """
    feed = Feed(model, batches)
    turns = _turns(probe.element_counts(model, tensors, feed.first()), settings.memory_bytes)
    found: dict[str, Range] = {}
    rounds = 2 if settings.calibrator == "entropy" else 1
    for number, names in enumerate(turns):
        progress(number / len(turns), f"ranges of {len(names)} tensors, turn {number + 1} of {len(turns)}")
        found.update(_turn(probe.Probe(model, names), names, feed, settings, rounds))
    return Calibration(ranges={name: found[name] for name in tensors}, rows=feed.rows, turns=len(turns))


def _turn(opened: probe.Probe, names: Sequence[str], feed: Feed, settings: Settings, rounds: int) -> dict[str, Range]:
    extremes = {name: Extremes(name) for name in names}
    magnitudes = {name: Magnitudes() for name in names} if settings.calibrator != "minmax" else {}
    for batch in feed.all():
        for name, values in opened.run(batch).items():
            extremes[name].observe(values)
            if magnitudes:
                magnitudes[name].observe(values)
    _check_seen(extremes)
    if settings.calibrator == "minmax":
        return {name: ranges.minmax(extremes[name]) for name in names}
    if rounds == 1:
        return {name: ranges.percentile(extremes[name], magnitudes[name], settings.percent) for name in names}
    histograms = {
        name: Histogram(ranges.entropy_limit(extremes[name], magnitudes[name]), ranges.ENTROPY_BINS) for name in names
    }
    for batch in feed.all():
        for name, values in opened.run(batch).items():
            histograms[name].observe(values)
    return {name: ranges.entropy(extremes[name], histograms[name], symmetric=settings.symmetric) for name in names}


def _turns(counts: Mapping[str, int], memory_bytes: int) -> list[list[str]]:
    """Return the tensors in the graph's order, in groups that fit into the memory; a tensor that does not fit is
    alone."""
    turns: list[list[str]] = []
    used = memory_bytes
    for name, count in counts.items():
        need = count * _ELEMENT_BYTES + _COUNTERS_BYTES
        if not turns or used + need > memory_bytes:
            turns.append([])
            used = 0
        turns[-1].append(name)
        used += need
    return turns


def _check_seen(extremes: Mapping[str, Extremes]) -> None:
    empty = [name for name, seen in extremes.items() if seen.count == 0]
    if empty:
        raise CalibrationError(
            f"calibration: tensor {empty[0]!r} has no element on any example, so that its range cannot be known; give "
            "examples on which it has some"
        )


class Feed:
    """Non-empty batches, as many rows at a time as the model takes; every walk must have the same number of rows."""

    def __init__(self, model: Any, batches: Batches) -> None:
        self._batches, self._fixed = batches, _fixed_batch(model)
        self.rows = 0

    def first(self) -> dict[str, Array]:
        """Return the first batch.

        Raises:
            CalibrationError: there are no rows at all.
        """
        for batch in self._walk():
            return batch
        raise CalibrationError("calibration: there are no examples; give at least one row", needed=1)

    def all(self) -> Iterator[dict[str, Array]]:
        """Walk over all batches.

        Raises:
            CalibrationError: another number of rows than in an earlier walk, or one that the model does not take.
        """
        rows = 0
        for batch in self._walk():
            rows += len(next(iter(batch.values())))
            yield batch
        if self.rows not in (0, rows):
            raise CalibrationError(
                f"calibration: {rows} rows in a second walk over the examples, {self.rows} in the first; the source "
                "must give the same examples every time"
            )
        self.rows = rows

    def _walk(self) -> Iterator[dict[str, Array]]:
        for batch in self._batches():
            if self._fixed is None:
                yield batch
                continue
            rows = len(next(iter(batch.values())))
            if self._fixed and rows % self._fixed:
                raise CalibrationError(
                    f"calibration: the model takes exactly {self._fixed} rows at a time, and a batch has {rows}; give "
                    f"a multiple of {self._fixed}, or export the model with a free batch dimension"
                )
            step = self._fixed or max(rows, 1)
            for start in range(0, rows, step):
                yield {name: np.asarray(array)[start : start + step] for name, array in batch.items()}


def _fixed_batch(model: Any) -> int | None:
    """Return the rows that the graph takes at a time; 0 for any number, None where inputs are no rows of one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape for value in model.graph.input if value.name not in constants]
    firsts = {int(shape.dim[0].dim_value) if len(shape.dim) else None for shape in shapes}
    return firsts.pop() if len(firsts) == 1 else None
