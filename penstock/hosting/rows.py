"""Rows of several requests as one batch, and back: joined, split, settled, and on a refusal told apart.

Once for all that merges requests: an engine's batches, a device's calls to the cloud, the SDK's merged requests. Which
requests share a batch, and when it goes, is the queue's (``penstock.hosting.queue``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from penstock.errors import Internal, InvalidInput, PenstockError, copy_of
from penstock.process.telemetry import log
from penstock.wire.tensors import Array

Tensors = Mapping[str, Array]

_LOG = logging.getLogger(__name__)
_A = TypeVar("_A")


def join(parts: Sequence[Tensors]) -> Tensors:
    """Put the inputs of several requests one after the other, along dimension 0. A single one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Cut a batch's outputs into those of its requests, as views. A single request's stay as they are.

    Raises:
        Internal: dimension 0 of an output is not the sum of ``rows``, so that nobody knows which row is whose.
    """
    if len(rows) == 1:
        return [outputs]
    total = sum(rows)
    for name, array in outputs.items():
        if array.shape[:1] != (total,):
            raise Internal(f"output {name!r} has shape {list(array.shape)} for a batch of {total} rows")
    parts: list[Tensors] = []
    start = 0
    for count in rows:
        stop = start + count
        parts.append({name: array[start:stop] for name, array in outputs.items()})
        start = stop
    return parts


def work_of(inputs: Tensors) -> int:
    """Count the elements of a request's inputs; the bytes of strings, whose number says nothing about their length."""
    work = 0
    for array in inputs.values():
        work += array.size
        if array.dtype.kind == "O":
            work += sum([len(item) for item in array.ravel().tolist()])
    return work


class Member(Protocol[_A]):
    """A request in a batch."""

    rows: int
    future: asyncio.Future[_A]


_M = TypeVar("_M", bound=Member[Any])


def settle(future: asyncio.Future[_A], outcome: _A | PenstockError) -> None:
    """Give a caller its answer or its error. One who has been answered, or went away, is left alone."""
    if future.done():
        return
    if isinstance(outcome, PenstockError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def fail(members: Sequence[Member[Any]], error: PenstockError) -> None:
    """Give every caller that still waits an error of its own: raised in several tasks, one would gather tracebacks."""
    for member in members:
        if not member.future.done():
            member.future.set_exception(copy_of(error))


async def isolate(
    members: Sequence[_M],
    run: Callable[[Sequence[_M]], Awaitable[Sequence[_A | PenstockError]]],
    *,
    may_be_one: Callable[[Exception], bool],
) -> int | None:
    """Run members as one batch and settle them; where one of them may be to blame for a failure, find it by halving.

    Those that are answered are answered at once, whatever becomes of the other half. Those that nobody waits for any
    more are left out.

    Args:
        may_be_one: whether such an error can be due to a single member, so that the others are worth another run.

    Returns:
        Rows that a batch may have at most, where that was found out: a batch was refused as invalid and both of its
        halves passed, so it was larger than what takes it. 0 where nothing was found out; None when somebody failed.
    """
    members = [member for member in members if not member.future.done()]
    if not members:
        return 0
    try:
        outcomes = await run(members)
    except Exception as error:  # whatever it is, the members that are innocent get their answers
        if len(members) > 1 and may_be_one(error):
            log(_LOG, logging.DEBUG, "a batch failed, running its halves", requests=len(members), error=error)
            middle = len(members) // 2
            learned = [await isolate(half, run, may_be_one=may_be_one) for half in (members[:middle], members[middle:])]
            found = [rows for rows in learned if rows is not None]
            if len(found) < len(learned):
                return None
            if not isinstance(error, InvalidInput):
                return 0  # a failure that went away: it says nothing about how much is too much
            return min([rows for rows in found if rows] or [max(1, sum([member.rows for member in members]) // 2)])
        fail(members, as_ours(error))
        return None
    has_failed = False
    for member, outcome in zip(members, outcomes, strict=True):
        if isinstance(outcome, PenstockError):
            has_failed = True
            settle(member.future, outcome)
        elif not member.future.done():  # as settle does, for the many
            member.future.set_result(outcome)
    return None if has_failed else 0


def as_ours(error: Exception) -> PenstockError:
    """Turn whatever a library raised into an error that a caller can be given."""
    if isinstance(error, PenstockError):
        return error
    log(_LOG, logging.ERROR, "a batch failed in a way that is not documented", exc_info=error)
    return Internal(f"the model failed: {type(error).__name__}: {str(error)[:500]}")
