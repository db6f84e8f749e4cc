"""Decides where a model runs: in the core's process, or in processes of its own. Pure.

A process of its own costs a request the way there and back, a fifth of a millisecond; what runs for a shorter time
stays in the core, where nothing is handed over. Everything else may crash, hang or take memory for itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

Placement = Literal["auto", "process", "inline"]

TINY_BYTES = 8 * 1024 * 1024
"""A model of more is not so quick that the way would matter, and is not measured in the core: its memory would stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where a model runs, and why.

    Attributes:
        is_inline: in the core's process; None where it has to be measured there first.
    """

    is_inline: bool | None
    why: str


def before_loading(placement: Placement, *, size_bytes: int, has_device: bool) -> Choice:
    """Decide as far as that is possible before a model was run.

    Args:
        size_bytes: of its files.
        has_device: it runs on a device of its own, not on the CPU.
    """
    match placement:
        case "process":
            return Choice(is_inline=False, why='placement = "process"')
        case "inline":
            return Choice(is_inline=True, why='placement = "inline"')
        case "auto":
            if has_device:
                return Choice(is_inline=False, why="its device's runtime may crash, and keeps memory for good")
            if size_bytes > TINY_BYTES:
                return Choice(is_inline=False, why=f"{size_bytes} bytes are no tiny model")
            return Choice(is_inline=None, why="small enough to be tried in the core")
        case _:
            assert_never(placement)


def when_measured(longest_s: float, *, hand_over_s: float) -> Choice:
    """Decide by what a model's largest batch took, in the core.

    Args:
        longest_s: that may be expected of a batch; infinity where free shapes say nothing about it.
        hand_over_s: what the way to another process may cost.
    """
    if longest_s < hand_over_s:
        why = f"its largest batch takes {longest_s * 1e3:.2g} ms, less than a hand-over"
        return Choice(is_inline=True, why=why)
    if longest_s == float("inf"):
        return Choice(is_inline=False, why="nobody knows how long a batch may take")
    return Choice(is_inline=False, why=f"its largest batch takes {longest_s * 1e3:.2g} ms, more than a hand-over")
