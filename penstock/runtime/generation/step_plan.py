"""Decide what one step computes, which slot a request gets, and how slots are ordered. Plain functions of values.

Who waits for a slot is decided elsewhere (``penstock.hosting.generation``), and what a token costs is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A request in a slot.

    Attributes:
        tokens: of its prompt and answer, whose keys and values are not computed yet; 1 of a request that decodes.
        served: the step in which it was given prompt tokens last, or admitted.
        is_alone: its tokens take turns with prompts, even a single one: what is found after each is looked at.
    """

    slot: int
    tokens: int
    served: int
    is_alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """As many of the next prompt tokens of one slot."""

    slot: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one step computes.

    Attributes:
        chunks: prompts, one after the other.
        decode: slots that have one token to compute, all at once.
    """

    chunks: tuple[Chunk, ...] = ()
    decode: tuple[int, ...] = ()


def plan_step(requests: Sequence[Unfinished], chunk_tokens: int) -> StepPlan:
    """Give every request that decodes its token, and ``chunk_tokens`` to prompts.

    Prompts take turns: first whose last turn is longest ago, so that a long one neither holds others up nor starves. A
    prompt that is not the first gets its whole rest or nothing, since a run over few tokens costs nearly as much as one
    over many.
    """
    decode = tuple(sorted(each.slot for each in requests if each.tokens == 1 and not each.is_alone))
    chunks: list[Chunk] = []
    left = chunk_tokens
    for each in sorted((e for e in requests if e.tokens > 1 or e.is_alone), key=lambda e: (e.served, e.slot)):
        if chunks and each.tokens > left:
            continue
        chunks.append(Chunk(slot=each.slot, tokens=min(each.tokens, left)))
        left -= chunks[-1].tokens
        if left <= 0:
            break
    return StepPlan(chunks=tuple(chunks), decode=decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What lies in one slot.

    Attributes:
        ids: tokens whose keys and values are there, from the beginning of a prompt.
        is_free: no request has it.
        used: the step in which a request had it last; -1 of one that was never used.
    """

    ids: Sequence[int]
    is_free: bool
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The slot that a request gets.

    Attributes:
        cached: tokens of its prompt whose keys and values need not be computed.
        source: the slot from which these are copied; None where they lie in ``slot`` already, or there are none.
    """

    slot: int
    cached: int = 0
    source: int | None = None


def place(prompt: Sequence[int], slots: Sequence[Content]) -> Placement:
    """Choose a free slot, and what of any slot's content the prompt begins with. There is at least one free slot.

    The last token of a prompt is always computed, since what comes after it is asked for. A slot whose content would
    be cut is left as it is while another is free for longer: the next turn of its conversation may come. Then the
    beginning is copied, also from a slot in use.
    """
    oldest = min((at for at, slot in enumerate(slots) if slot.is_free), key=lambda at: (slots[at].used, at))
    shared = [min(shared_beginning(prompt, slot.ids), len(prompt) - 1) for slot in slots]
    cached = max(shared)
    if cached == 0:
        return Placement(slot=oldest)
    holders = [at for at in range(len(slots)) if shared[at] == cached]
    whole = [at for at in holders if slots[at].is_free and len(slots[at].ids) == cached]
    if whole or oldest in holders:
        return Placement(slot=whole[0] if whole else oldest, cached=cached)
    return Placement(slot=oldest, cached=cached, source=holders[0])


def shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where the slots that decode lie side by side.

    Attributes:
        first: of them.
        swaps: pairs of slots that change places before.
    """

    first: int
    swaps: tuple[tuple[int, int], ...] = ()


def arrange(decode: Collection[int], slots: int) -> Arrangement:
    """Bring the slots that decode side by side with the fewest swaps; ``decode`` has at least one of ``slots``.

    One run takes neighbouring slots only, and a slot in between that does not decode would be computed for nothing.
    """
    count = len(decode)
    windows = range(slots - count + 1)
    first = max(windows, key=lambda begin: (sum(begin <= at < begin + count for at in decode), -begin))
    holes = [at for at in range(first, first + count) if at not in decode]
    outside = [at for at in sorted(decode) if not first <= at < first + count]
    return Arrangement(first=first, swaps=tuple(zip(outside, holes, strict=True)))
