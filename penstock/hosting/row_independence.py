"""Whether the rows of a batch change each other's answers: then an answer depends on who else asked.

Decides by running: rows alone, then beside each other and beside extreme neighbours. A graph that normalizes over the
batch, or that scales its integers by the largest value in it, is found whatever its operators are called. Which
operator it is, only the compiler can say (``compiler.graph.row_independence``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from penstock.errors import PenstockError
from penstock.wire.tensors import Array, TensorSpec, numpy_dtype

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_ROWS = 4
"""Rows that are looked at. Each gets a neighbour, so that twice as many run together."""
_LIMIT_S = 10.0
_STEPS = {"fp32": 1e-3, "none": 1e-3, "fp16": 1e-2}
_INTEGER_STEP = 4 / 256
"""Of the largest value of an output: what another order of adding may move. In integers a sum beside a rounding border
lands one step off and carries on from there, as with golden vectors."""
_HUGE = 1e30
_LONG_TEXT = " ".join(["word"] * 256)
_SEED = 0


class Shaped(Protocol):
    """What is known of an engine's tensors."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...
    @property
    def outputs(self) -> Sequence[TensorSpec]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Rows as they are asked alone, and the same rows in a batch with others.

    Attributes:
        name: what the others are, for people.
        batch: the rows, each followed by its neighbour.
        places: where in the batch the rows are.
    """

    name: str
    batch: Mapping[str, Array]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was seen.

    Attributes:
        reason: why rows must run one at a time, in words; "" where they were seen to be independent.
        company: the batch that showed it; None where nothing was shown.
    """

    reason: str = ""
    company: Company | None = None


INDEPENDENT = Finding()


def look(
    run: Run,
    shaped: Shaped,
    samples: Mapping[str, Array],
    *,
    precision: str,
    max_batch: int,
    limit_s: float = _LIMIT_S,
) -> Finding:
    """Ask for rows alone and in company, and compare beyond rounding. A few dozen rows are run, for at most seconds.

    Args:
        samples: rows that the model may get; empty for noise, which a model with free dimensions may refuse.
        max_batch: most rows of one run; what never runs together need not be looked at.
        limit_s: after so long nothing more is run, and rows count as not seen to be independent.
    """
    if max_batch < 2 or not _has_rows(shaped):
        return INDEPENDENT  # the host merges no rows of it
    until = time.perf_counter() + limit_s
    rows = rows_of(shaped.inputs, samples, min(_ROWS, max_batch // 2))
    count = len(next(iter(rows.values())))
    try:
        answers = [run({name: array[at : at + 1] for name, array in rows.items()}) for at in range(count)]
    except PenstockError as error:
        return Finding(reason=f"rows cannot be tried alone: {error.message}")
    if any(len(array) != 1 for answer in answers for array in answer.values()):
        return INDEPENDENT  # dimension 0 is not the batch, which the host finds out, too
    alone = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    for company in companies(rows):
        try:
            found = run(company.batch)
        except PenstockError:
            continue  # a model may refuse extremes: their batch fails, and the host runs its requests apart
        if any(len(array) != 2 * count for array in found.values()):
            return INDEPENDENT
        taken = {name: array[list(company.places)] for name, array in found.items()}
        if (apart := first_apart(alone, taken, precision=precision)) is not None:
            return Finding(reason=f"output {apart!r} of a row changes beside {company.name}", company=company)
        if time.perf_counter() > until:
            return Finding(reason=f"{limit_s:g} s were not enough to see whether rows change each other's answers")
    return INDEPENDENT


def rows_of(specs: Sequence[TensorSpec], samples: Mapping[str, Array], most: int) -> dict[str, Array]:
    """Take the first rows of samples; without samples, draw noise (whole numbers are 0 and 1)."""
    source = np.random.default_rng(_SEED)
    rows: dict[str, Array] = {}
    for spec in specs:
        given = samples.get(spec.name)
        if given is not None and len(given):
            rows[spec.name] = given[:most]
            continue
        shape = (most, *(1 if size == -1 else size for size in spec.shape[1:]))
        rows[spec.name] = _noise(spec, shape, source)
    least = min(len(array) for array in rows.values())
    return {name: array[:least] for name, array in rows.items()}


def companies(rows: Mapping[str, Array]) -> Iterator[Company]:
    """Yield the same rows with other neighbours each time: themselves turned round, zeros, extremes, NaN, and for text
    none and a long one.

    Only numbers with a fraction become extreme: whole numbers may be places in a table. A row comes before its
    neighbour and, the first aside, behind another's.
    """
    count = len(next(iter(rows.values())))
    places = tuple(range(0, 2 * count, 2))
    turned = {name: array[::-1] for name, array in rows.items()}
    yield Company(name="other rows", batch=_mixed(rows, turned), places=places)
    yield Company(name="other rows before it", batch=_mixed(turned, rows), places=tuple(range(1, 2 * count, 2)))
    kinds = {array.dtype.kind for array in rows.values()}
    for name, text in (("no text", ""), ("long text", _LONG_TEXT)) if kinds & set("OSU") else ():
        yield Company(name=name, batch=_mixed(rows, _worded(rows, text)), places=places)
    for name, value in (("zeros", 0.0), ("1e30", _HUGE), ("-1e30", -_HUGE), ("NaN", np.nan)) if "f" in kinds else ():
        yield Company(name=name, batch=_mixed(rows, _filled(rows, value)), places=places)


def first_apart(alone: Mapping[str, Array], found: Mapping[str, Array], *, precision: str) -> str | None:
    """Return the first output whose values differ by more than rounding; None where all agree."""
    return next((name for name, array in alone.items() if not _agree(array, found[name], precision)), None)


def _agree(alone: Array, found: Array, precision: str) -> bool:
    if alone.shape != found.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, found))
    left, right = alone.astype(np.float64), found.astype(np.float64)
    usual = np.isfinite(left)
    if not np.array_equal(usual, np.isfinite(right)) or not np.array_equal(left[~usual], right[~usual], equal_nan=True):
        return False
    largest = float(np.max(np.abs(left[usual]), initial=0.0))
    step = _STEPS.get(precision, _INTEGER_STEP)
    return bool(np.all(np.abs(left[usual] - right[usual]) <= step * largest))


def _has_rows(shaped: Shaped) -> bool:
    return all(spec.shape[:1] == (-1,) for spec in (*shaped.inputs, *shaped.outputs))


def _mixed(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array]:
    """Put rows of two in turns: the first of one, the first of the other, and so on."""
    return {
        name: np.stack([array, second[name]], axis=1).reshape(2 * len(array), *array.shape[1:])
        for name, array in first.items()
    }


def _filled(rows: Mapping[str, Array], value: float) -> dict[str, Array]:
    return {name: _extreme(array, value) if array.dtype.kind == "f" else array[::-1] for name, array in rows.items()}


def _worded(rows: Mapping[str, Array], text: str) -> dict[str, Array]:
    return {
        name: np.full(array.shape, text, dtype=object) if array.dtype.kind in "OSU" else array[::-1]
        for name, array in rows.items()
    }


def _extreme(array: Array, value: float) -> Array:
    """Fill with a value, or with the largest that is finite where numbers are too short for it."""
    with np.errstate(over="ignore"):
        filled = np.full_like(array, value)
    return np.nan_to_num(filled, copy=False) if np.isfinite(value) else filled


def _noise(spec: TensorSpec, shape: tuple[int, ...], source: np.random.Generator) -> Array:
    dtype = numpy_dtype(spec.datatype)
    if dtype.kind == "O":
        return np.full(shape, b"", dtype=object)
    if dtype.kind == "f":
        return source.uniform(-1.0, 1.0, shape).astype(dtype)
    return source.integers(0, 2, shape).astype(dtype)
