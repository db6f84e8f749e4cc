"""Which of several servers gets the next generation: the one that has the least to compute before its end. Pure.

A number of requests says little, since one answer is a hundred times as long as another: tokens are counted, from the
moment a server is asked to its last one. What a server has of a prompt already, because one that begins alike was sent
there (``penstock.policy.prefixes``), it need not compute. So a server is preferred for its cache by as many tokens as
that saves, and by no more: that is how far servers may drift apart.
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
        cached_tokens: of the next prompt, that it has computed lately.
        was_tried: it was asked for this very generation, and did not begin it.
    """

    generations: int
    tokens: int
    cached_tokens: int = 0
    is_left_alone: bool = False
    was_tried: bool = False


def choose(servers: Sequence[Owes], *, max_outstanding: int, retry_after_s: float) -> int | PenstockError:
    """Return the index of the server to ask, or why there is none.

    Among those that are the same the first one is asked, which keeps prompts together while there is little to do.
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
    return min(free, key=lambda at: (servers[at].tokens - servers[at].cached_tokens, at))
