"""Who of several tenants is next at a device: start-time fair queueing, by the time that each had of it.

A tenant's virtual time is what it was given, in seconds by its weight; whoever waits and has had least is next. It is
charged what its rows should take when they are taken, and what they took when that was measured. Who comes back after
an idle time begins where the others are: what was not used is not saved up.

Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996. No clock, no queue: whose chunks are taken
is ``penstock.policy.batch_line``'s.
"""

from __future__ import annotations

from collections.abc import Callable

_FEW = 64


class Share:
    """One tenant's part of a device.

    Attributes:
        had: its virtual time.
        rows: of its chunks that wait.
        chunks: of it that wait.
    """

    __slots__ = ("chunks", "had", "rows", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.had = 0.0
        self.rows = self.chunks = 0


class FairShares:
    """The tenants of one device. Keeps those that it has seen and that are not to be forgotten yet.

    Attributes:
        are_several: says whether room is to be left for others.
    """

    def __init__(
        self, weight_of: Callable[[str], float] = lambda tenant: 1.0, are_several: Callable[[], bool] = lambda: True
    ) -> None:
        """
        Args:
            weight_of: a tenant's weight, above 0, asked when it is first seen.
        """
        self.are_several = are_several
        self._weight_of = weight_of
        self._shares: dict[str, Share] = {}
        self._at = 0.0  # the virtual time of whoever was served last

    def of(self, tenant: str) -> Share:
        """Return a tenant's share."""
        share = self._shares.get(tenant)
        if share is None:
            if len(self._shares) >= _FEW:
                self._forget()
            share = self._shares[tenant] = Share(self._weight_of(tenant))
            share.had = self._at
        return share

    def came(self, share: Share) -> None:
        """Note that a tenant waits that did not before."""
        share.had = max(share.had, self._at)

    def charge(self, share: Share, seconds: float) -> None:
        """Note that a tenant is served, for so long as it should take."""
        self._at = max(self._at, share.had)
        share.had += seconds / share.weight

    def correct(self, tenant: str, seconds: float) -> None:
        """Note how much longer, or shorter, it took."""
        share = self._shares.get(tenant)
        if share is not None:
            share.had += seconds / share.weight

    def rows_before(self, tenant: str, all_rows: int) -> int:
        """Say how many of the rows that wait may go before one more chunk of a tenant, by its weight."""
        mine = self.of(tenant)
        weights = sum([share.weight for share in self._shares.values() if share.chunks and share is not mine])
        return min(all_rows, mine.rows + round(mine.rows * weights / mine.weight))

    def _forget(self) -> None:
        """Drop who waits for nothing and would begin where the others are anyway."""
        idle = [name for name, share in self._shares.items() if not share.chunks and share.had <= self._at]
        for name in idle:
            del self._shares[name]


def fits_beside(mine: float, more: float, *, held: float, limit: float) -> bool:
    """Say whether one of several may take ``more`` of something that they share: what others left free, and no more.

    One alone gets half; each of two that want all, a third; each of n, one of n + 1 parts, and the last part is free
    for whoever comes. So nobody can shut others out, and no share has to be set. Who has nothing yet may take what
    there is.

    Source: A. Choudhury, E. Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998.

    Args:
        mine: what it has already, part of ``held``.
        held: what all have together.
    """
    return held + more <= limit and (mine == 0 or mine + more <= limit - (held + more))
