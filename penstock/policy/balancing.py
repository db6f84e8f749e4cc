"""Which of several servers gets the next generation: the one that owes the fewest tokens. Pure.

A number of requests says little, since one answer is a hundred times as long as another. What a server owes counts from
the moment it is asked to its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import PenstockError, QueueFull, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Owes:
    """One server, and what it has not answered yet.

    Attributes:
        generations: that it was asked for and has not ended.
        tokens: of their prompts and longest answers.
        is_left_alone: it failed, and may be asked by nobody but a probe.
        was_tried: it was asked for this very generation, and did not begin it.
    """

    generations: int
    tokens: int
    is_left_alone: bool = False
    was_tried: bool = False


def choose(servers: Sequence[Owes], *, max_outstanding: int, retry_after_s: float) -> int | PenstockError:
    """Return the index of the server to ask, or why there is none.

    Among those that owe the same the first one is asked, which keeps prompts that begin alike together while there is
    little to do.
    """
    able = [at for at, server in enumerate(servers) if not server.is_left_alone and not server.was_tried]
    if not able:
        return Unavailable("no server can be asked at the moment", retry_after_s=retry_after_s)
    free = [at for at in able if servers[at].generations < max_outstanding]
    if not free:
        return QueueFull(
            f"each server has {max_outstanding} generations to answer, the limit (max_outstanding)",
            retry_after_s=retry_after_s,
        )
    return min(free, key=lambda at: (servers[at].tokens, at))
