"""Which runs were so much larger than usual that the memory they took is given back. Pure; work is bytes of inputs.

onnxruntime keeps what its largest run took, in an arena that never shrinks by itself: one request of 256 pictures would
cost a gigabyte for good. To give it back and take it again makes a large run half as slow again, so a model whose runs
are often large keeps it.
"""

from __future__ import annotations

FACTOR = 4.0
"""A run that takes more than this many times what is usual is not usual."""

RISE, FALL = 1 / 32, 1 / 1024
"""How far the usual moves towards a larger and a smaller run. Nine runs of one size in a row make it usual, and so does
one among ninety small ones; what is no longer needed is given back after about 1,400 small runs.
"""


class ArenaUse:
    """What an engine's runs took, and what of it the arena still has.

    Attributes:
        usual: work that runs have, following large ones quickly and small ones slowly.
        kept: work of the largest run since memory was given back; the arena holds what that took.
    """

    __slots__ = ("_least", "kept", "usual")

    def __init__(self, least: float) -> None:
        """
        Args:
            least: work of the largest run that is always usual: a full batch.
        """
        self._least = self.usual = least
        self.kept = 0.0

    def gives_back(self, work: int) -> bool:
        """Decide whether a run of so much work leaves memory behind that is to be given back, and learn from it."""
        if work <= self._least == self.usual and self.kept <= FACTOR * self._least:
            return False
        self.kept = max(self.kept, work)
        is_too_much = self.kept > FACTOR * self.usual
        share = RISE if work > self.usual else FALL
        self.usual = max(self._least, self.usual + share * (work - self.usual))
        if self.usual < self._least * (1 + FALL):
            self.usual = self._least  # it would come ever closer, and never be there
        if is_too_much:
            self.kept = 0.0
        return is_too_much
