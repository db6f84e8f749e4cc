"""Remembers which beginnings of prompts a server was sent lately, as it keeps them itself: in whole blocks. Pure.

Servers keep keys and values of a prompt by blocks of tokens, each known by itself and all before it. Which a server
still has, it does not say; what was sent there last is a good guess, and a wrong one costs a prompt computed once more.
"""

from __future__ import annotations

from collections.abc import Sequence


def blocks_of(prompt_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """Return a number for each whole block of a prompt; equal numbers for prompts that are equal up to there."""
    blocks = []
    before = 0
    for start in range(0, len(prompt_ids) - block_tokens + 1, block_tokens):
        before = hash((before, *prompt_ids[start : start + block_tokens]))
        blocks.append(before)
    return tuple(blocks)


class SentPrefixes:
    """Blocks that one server was sent, the latest ones: when there are too many, the one longest unused is dropped."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks: dict[int, None] = {}  # in the order of their last use

    def __len__(self) -> int:
        return len(self._blocks)

    def known(self, blocks: Sequence[int]) -> int:
        """Return how many blocks at the beginning of a prompt were sent lately."""
        return next((count for count, block in enumerate(blocks) if block not in self._blocks), len(blocks))

    def add(self, blocks: Sequence[int]) -> None:
        """Take the blocks of a prompt in. Its first block is of use to most, and the last one to be dropped."""
        for block in reversed(blocks[: self._max_blocks]):
            self._blocks.pop(block, None)
            self._blocks[block] = None
        while len(self._blocks) > self._max_blocks:
            del self._blocks[next(iter(self._blocks))]

    def clear(self) -> None:
        """Forget everything: the server was started again, or may have been."""
        self._blocks.clear()
