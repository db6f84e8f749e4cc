"""Which of many messages that are alike are said: the first of a kind in a while, with the number that was kept back.

For messages that a client's requests may cause by the thousand. Owns no clock and no log.
"""

from __future__ import annotations


class Repeats:
    """Remembers when each kind of message was said last."""

    def __init__(self, *, every_s: float, max_kinds: int) -> None:
        """
        Args:
            every_s: a kind is said once in that many seconds.
            max_kinds: kinds that are remembered; the one that was said longest ago is forgotten for a new one.
        """
        self._every_s, self._max_kinds = every_s, max_kinds
        self._said: dict[str, tuple[float, int]] = {}  # by time of saying: when, and how many were kept back since

    def heard(self, kind: str, now: float) -> int | None:
        """Take a message of a kind in; return how many like it were kept back before, or None to keep it back, too."""
        last = self._said.get(kind)
        if last is not None and now < last[0] + self._every_s:
            self._said[kind] = (last[0], last[1] + 1)
            return None
        self._said.pop(kind, None)
        if len(self._said) >= self._max_kinds:
            del self._said[next(iter(self._said))]
        self._said[kind] = (now, 0)
        return last[1] if last is not None else 0
